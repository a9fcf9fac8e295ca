"""Training steps in one launch, on any machine: the arguments of csrc/cuda/train_steps.h and what they must give."""

from ctypes import Structure, c_bool, c_float, c_int, c_int64, c_void_p

import torch

import pytorch_ext.nn as nn
from pytorch_ext import optim

from . import checks
from .arguments import ACTIVATIONS, LOSSES, REDUCTIONS, structures

types = structures(torch.float32)
MOST_LAYERS, MOST_RULES, MOST_STEPS = 8, 4, 64


class StepParameter(Structure):
    _fields_ = [("value", c_void_p), ("state", c_void_p * 3), ("rule", c_int), ("first", c_bool)]


class StepLayer(Structure):
    _fields_ = [("inputs", c_int), ("outputs", c_int), ("activation", c_int), ("weight", StepParameter)]
    _fields_ += [("bias", StepParameter), ("own", c_int), ("stride", c_int), ("weight_at", c_int), ("state_at", c_int)]
    _fields_ += [("output", c_void_p), ("gradient", c_void_p), ("saved", c_void_p), ("output_turn", c_int64)]


class StepNumbers(Structure):
    _fields_ = [("negative_step_size", c_float), ("scale", c_float)]


class TrainSteps(Structure):
    _fields_ = [("layers", c_int), ("layer", StepLayer * MOST_LAYERS), ("first_trained", c_int), ("is_adam", c_bool)]
    _fields_ += [("rules", c_int), ("sgd", types.SgdRule * MOST_RULES), ("adam", types.AdamRule * MOST_RULES)]
    _fields_ += [("numbers", StepNumbers * MOST_RULES * MOST_STEPS), ("of_classes", c_bool)]
    _fields_ += [("classes", types.ClassificationLoss), ("elementwise", types.ElementwiseLossArrays)]
    _fields_ += [("steps", c_int), ("rows", c_int * MOST_STEPS), ("inputs", c_void_p), ("losses", c_void_p)]
    _fields_ += [("terms", c_void_p), ("cluster", c_int), ("keeps_states", c_bool), ("turned_at", c_int)]
    _fields_ += [("work_at", c_int), ("shared_bytes", c_int64)]


def layers_of(p, memory, model):
    """Fills the layers in; what lies in the machine's memory, by the parameter that it is a copy of."""
    copies = {}
    for layer in model:
        if not isinstance(layer, nn.Linear):
            continue
        at = p.layer[p.layers]
        p.layers += 1
        at.inputs, at.outputs = layer.in_features, layer.out_features
        at.activation = ACTIVATIONS.index(layer.activation or "none")
        for name, parameter in layer.named_parameters():
            copies[parameter] = memory.copy(parameter)
            getattr(at, name).value, getattr(at, name).rule = copies[parameter].address, 0
    return copies


def rule_of(p, optimizer, steps):
    group = optimizer.param_groups[0]
    p.rules, p.is_adam = 1, "betas" in group
    if not p.is_adam:
        rule = checks.sgd_rule(*(group[k] for k in ("lr", "momentum", "dampening", "weight_decay")))
        p.sgd[0] = types.SgdRule(**rule, nesterov=group["nesterov"])
        return
    rule = checks.adam_rule(group["lr"], *group["betas"], group["eps"], group["weight_decay"])
    p.adam[0] = types.AdamRule(**rule, decoupled=group["decoupled_weight_decay"], amsgrad=group["amsgrad"])
    for s in range(steps):
        p.numbers[s][0] = StepNumbers(*checks.adam_factors(group["lr"], *group["betas"], s + 1))


def state_of(p, memory, optimizer):
    """Empty state in the machine's memory, beside every parameter."""
    group = optimizer.param_groups[0]
    count = 2 + group["amsgrad"] if p.is_adam else int(group["momentum"] != 0)
    for layer in p.layer[: p.layers]:
        for parameter, size in ((layer.weight, layer.inputs * layer.outputs), (layer.bias, layer.outputs)):
            parameter.first = not p.is_adam
            for i in range(count if parameter.value else 0):
                parameter.state[i] = memory.copy(
                    torch.zeros(size) if p.is_adam else torch.full((size,), torch.nan)
                ).address


def loss_of(p, memory, loss, targets):
    p.of_classes = isinstance(loss, nn.CrossEntropyLoss)
    if p.of_classes:
        classes = p.layer[p.layers - 1].outputs
        p.classes = types.ClassificationLoss(outer=1, classes=classes, inner=1, input_outer=classes)
        p.classes.indices, p.classes.ignore_index = memory.copy(targets).address, loss.ignore_index
        p.classes.kept = p.classes.on_target = 1
        p.classes.reduction = REDUCTIONS.index(loss.reduction)
        return
    kind = {nn.MSELoss: "mse_loss", nn.BCELoss: "binary_cross_entropy"}.get(type(loss), LOSSES[2])
    p.elementwise.loss, p.elementwise.reduction = LOSSES.index(kind), REDUCTIONS.index(loss.reduction)
    p.elementwise.target = memory.copy(targets).address


def check_train_steps(machine, model, loss, optimizer, inputs, targets, rows, blocks):
    """Steps of `rows` rows each, by so many blocks, have the bits of the loop over the CPU's layers."""
    p, memory = TrainSteps(), machine.memory
    copies = layers_of(p, memory, model)
    rule_of(p, optimizer, len(rows))
    state_of(p, memory, optimizer)
    loss_of(p, memory, loss, targets)
    p.steps, p.inputs = len(rows), memory.copy(inputs).address
    p.rows[: len(rows)] = rows
    losses = memory.empty(len(rows))
    p.losses = losses.address
    machine.call("train_steps", p, max(rows), blocks)
    expected = []
    for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        expected.append(value.detach())
    what = f"{len(rows)} steps by {blocks} blocks"
    checks.check_all(machine, [losses.tensor], [torch.stack(expected)], f"the losses of {what}")
    for parameter, copy in copies.items():
        checks.check_all(machine, [copy.tensor], [parameter.detach()], f"parameters after {what}")


def small(machine, blocks):
    """Two chunks in every product, a tail everywhere, a loss of every kind."""
    for sizes, rows, loss, of in [
        ((270, 9, 5), [6, 3], nn.CrossEntropyLoss(), "Adam"),
        ((5, 11, 6), [260, 7], nn.MSELoss(), "SGD"),
        ((8, 4), [5], nn.BCEWithLogitsLoss(), "AdamW"),
    ]:
        torch.manual_seed(1)
        hidden = ["gelu", "tanh", "relu"]
        layers = [nn.Linear(k, n, activation=a) for k, n, a in zip(sizes[:-2], sizes[1:-1], hidden, strict=False)]
        model = nn.Sequential(*layers, nn.Linear(*sizes[-2:]))
        options = {"momentum": 0.9, "nesterov": True} if of == "SGD" else {}
        optimizer = getattr(optim, of)(model.parameters(), lr=1e-2, **options)
        inputs = torch.randn(sum(rows), sizes[0])
        is_classes = isinstance(loss, nn.CrossEntropyLoss)
        targets = torch.randint(sizes[-1], (len(inputs),)) if is_classes else torch.rand(len(inputs), sizes[-1])
        check_train_steps(machine, model, loss, optimizer, inputs, targets, rows, blocks)
