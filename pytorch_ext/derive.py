"""A class derived from a user's, whose methods call what :mod:`pytorch_ext.rewrite` has put into them.

It has the name of the user's class, is made once for each set of exchanged calls, and pickles as the user's class with
that set.
"""

import abc
import copyreg
import weakref

from . import calls, nn
from .methods import methods_of
from .recompile import Refused, decorated_alike, definition, function_from, undecorated
from .rewrite import Exchange

ORIGINAL = "_pytorch_ext_original"  # in a class made here or by convert: the class before
SEQUENTIAL = ("forward", (), "sequential")  # the key of a forward that is torch.nn.Sequential's
# Modules whose classes do not mind: of transformers' two, one copies the class of the config, the other wraps forward
# for checkpointing and, of several such wrappers, heeds the outermost.
UNNOTICED = ("builtins", "typing", "transformers.modeling_utils", "transformers.modeling_layers")
_MADE = weakref.WeakValueDictionary()  # (class, keys) -> derived class


def is_derivable(cls):
    """Whether a class can be derived from this one without the user's code noticing."""
    own = [base for base in cls.__mro__ if base.__module__ not in UNNOTICED]
    watched = any("__init_subclass__" in vars(base) for base in own)
    return type(cls) in (type, abc.ABCMeta) and not watched


def derived(cls, keys):
    """The class derived from ``cls`` in which the calls of these keys are exchanged; cls where there are none."""
    keys = frozenset(keys)
    made = _MADE.get((cls, keys))
    if made is None:
        methods = exchanged_methods(cls, keys)
        made = _MADE[cls, keys] = derive(cls, methods, keys) if methods else cls
    return made


def exchanged_methods(cls, keys):
    methods = {}
    for name, (outer, owner) in methods_of(cls).items():
        if any(key[0] == name for key in keys):
            function = undecorated(outer)
            try:
                exchange = Exchange(function, wanted=keys)
                tree = exchange.run(definition(function, owner))
            except Refused:  # an object unpickled where the source is another one
                continue
            if exchange.places:
                methods[name] = decorated_alike(function_from(tree, function, owner, calls), outer)
    if SEQUENTIAL in keys:
        methods["forward"] = nn.Sequential.forward
    return methods


def derive(cls, methods, keys):
    def __reduce_ex__(self, protocol):
        reduced = super(made, self).__reduce_ex__(protocol)
        if reduced[0] is copyreg.__newobj__ and reduced[1][0] is made:
            return restore, (cls, keys, *reduced[1][1:]), *reduced[2:]
        return reduced

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    made = type(cls)(cls.__name__, (cls,), {**names, **methods, ORIGINAL: cls, "__reduce_ex__": __reduce_ex__})
    return made


def restore(cls, keys, *arguments):
    """An object of the class derived from ``cls``, for pickle and copy."""
    made = derived(cls, keys)
    return made.__new__(made, *arguments)
