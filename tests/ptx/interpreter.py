"""A PTX interpreter: runs a kernel's instructions on numpy arrays with one element per thread of the whole launch.

Of the threads that can run, those at the lowest instruction go on together, so that diverged threads meet again. Every
access is checked: it must be aligned and lie in one array of global memory, or in the block's shared memory, which
starts as NaN. Only instructions that kernels of this package are compiled to are known.
"""

import re

import numpy as np

from .memory import Fault, Memory
from .parse import BITS
from .values import APPROXIMATE, FLOATING, INTEGER, UNARY, UNSIGNED, compare, numpy_type

WARP = 32
BLOCK, CLUSTER = 1, 2  # whom a thread waits for
RANK_BIT = 24  # of an address in shared::cluster: from here on it says which block's
COPIES = {"ca": ("4", "8", "16"), "cg": ("16",)}  # how many bytes each kind of cp.async moves


class Launch:
    """One launch of a kernel. `fma` is a function of three float arrays that rounds once."""

    def __init__(self, kernel, grid, block, shared_bytes, arguments, regions, fma, cluster=1):
        self.kernel, self.fma, self.cluster = kernel, fma, cluster
        self.in_block = int(np.prod(block))
        self.count = int(np.prod(grid)) * self.in_block
        self.parameters = np.zeros(max(o + n for o, n in kernel.parameters.values()), np.uint8)
        for (offset, size), value in zip(kernel.parameters.values(), arguments, strict=True):
            if len(value) != size:
                raise Fault(f"{kernel.name}: an argument of {len(value)} bytes for a parameter of {size}")
            self.parameters[offset : offset + size] = np.frombuffer(value, np.uint8)
        self.shared_size = max((o + n for o, n in kernel.shared.values()), default=0) + shared_bytes
        self.local_size = max((o + n for o, n in kernel.local.values()), default=0)
        blocks = self.count // self.in_block
        self.shared = np.full(blocks * self.shared_size, 0xFF, np.uint8)
        self.local = np.full(self.count * self.local_size, 0xFF, np.uint8)
        own = (self.parameters, self.shared, self.local)
        self.memory = Memory([*regions, *((array.ctypes.data, array) for array in own)])
        self.symbols = {name: self.parameters.ctypes.data + o for name, (o, _) in kernel.parameters.items()}
        self.symbols |= {name: o for variables in (kernel.shared, kernel.local) for name, (o, _) in variables.items()}
        self.symbols |= dict.fromkeys(kernel.strings, 0)
        self.special = self._special_registers(grid, block)
        self.registers, self.operands = {}, {}

    def _special_registers(self, grid, block):
        thread, number = np.arange(self.count) % self.in_block, np.arange(self.count) // self.in_block
        result = {"%laneid": thread % WARP, "%cluster_ctarank": number % self.cluster}
        result["%cluster_nctarank"] = np.full(self.count, self.cluster)
        for axis, place in zip("xyz", range(3), strict=True):
            result[f"%tid.{axis}"] = thread // int(np.prod(block[:place])) % block[place]
            result[f"%ctaid.{axis}"] = number // int(np.prod(grid[:place])) % grid[place]
            result[f"%ntid.{axis}"] = np.full(self.count, block[place])
            result[f"%nctaid.{axis}"] = np.full(self.count, grid[place])
        return {name: values.astype(np.uint32) for name, values in result.items()}

    # ---- operands --------------------------------------------------------------------------------------------------

    def register(self, name):
        if name not in self.registers:
            prefix = name if name in self.kernel.registers else re.match(r"%[a-zA-Z_]+", name)[0]
            kind = UNSIGNED[BITS[self.kernel.registers[prefix]]]
            self.registers[name] = np.full(self.count, -1).astype(kind)  # NaN until it is written
        return self.registers[name]

    def read(self, operand, kind, act):
        """The operand's values for the threads `act`, as the type `kind`."""
        wanted = numpy_type(kind)
        if operand in self.special:
            return self.special[operand][act].astype(wanted)
        if operand[0] == "%":
            values = self.register(operand)[act]
            if values.dtype.itemsize == np.dtype(wanted).itemsize:
                return values.view(wanted)
            return values.astype(UNSIGNED[BITS[kind]]).view(wanted)
        if operand[0] == "!":
            return ~self.register(operand[1:])[act]
        key = operand, kind
        if key not in self.operands:
            self.operands[key] = self._constant(operand, kind)
        length = self.count if isinstance(act, slice) else len(act)
        return np.full(length, self.operands[key])

    def _constant(self, operand, kind):
        bits, unsigned = BITS[kind], UNSIGNED[BITS[kind]]
        if operand in self.symbols:
            value = self.symbols[operand]
        elif operand[:2].lower() in ("0f", "0d"):
            value = int(operand[2:], 16)
        else:
            value = int(operand.rstrip("U"), 0)
        return np.array([value & ((1 << bits) - 1)], np.uint64).astype(unsigned).view(numpy_type(kind))[0]

    def write(self, register, values, act):
        target = self.register(register)
        if values.dtype.itemsize == target.dtype.itemsize:
            target[act] = values.view(target.dtype) if values.dtype != target.dtype else values
        else:  # a narrower result is extended by its sign
            target[act] = values.astype(target.dtype)

    def addresses(self, operand, act):
        base, sign, offset = re.match(r"\[\s*([^\s+\]-]+)\s*([+-]*)\s*(\w+)?\s*\]", operand).groups()
        base = self.read(base, "u64", act)
        if not offset:
            return base
        return base + np.uint64(int(offset, 0) * (-1 if "-" in sign else 1) & 0xFFFFFFFFFFFFFFFF)

    # ---- running ---------------------------------------------------------------------------------------------------

    def run(self):
        end, starts = len(self.kernel.code), set(self.kernel.labels.values())
        position, waiting = (
            np.zeros(self.count, np.int64),
            np.zeros(self.count, np.int8),
        )  # for nobody, BLOCK or CLUSTER
        self.arrived = np.zeros(self.count, bool)  # at the cluster's barrier
        with np.errstate(all="ignore"):
            while True:
                can_run = (waiting == 0) & (position < end)
                if not can_run.any():
                    if not waiting.any():
                        return
                    released = waiting == (BLOCK if (waiting == BLOCK).any() else CLUSTER)
                    self.arrived[released & (waiting == CLUSTER)] = False
                    waiting[released] = 0
                    continue
                at = position[can_run].min()
                threads = np.nonzero(can_run & (position == at))[0]
                while True:  # until these threads part, wait, or may meet others
                    instruction = self.kernel.code[at]
                    act = self._guarded(instruction, threads)
                    at += 1
                    position[threads] = at
                    name = instruction.opcode[0]
                    if name == "bra":
                        position[threads[act]] = self.kernel.labels[instruction.operands[0]]
                        break
                    if name in ("ret", "exit"):
                        position[threads[act]] = end
                        break
                    if name in ("bar", "barrier") and instruction.opcode[1] != "warp":
                        waiting[threads[act]] = self._barrier(instruction, threads[act])
                        break
                    chosen = threads[act]
                    if len(chosen):
                        self._execute(instruction, slice(None) if len(chosen) == self.count else chosen)
                    if at in starts or at >= end:
                        break

    def _barrier(self, instruction, threads):
        """Whom these threads wait for there."""
        if instruction.opcode[1] != "cluster":
            return BLOCK
        waits = instruction.opcode[2] == "wait"
        if (self.arrived[threads] != waits).any():
            raise Fault(f"{self.kernel.name}: {instruction}: out of turn")
        self.arrived[threads] = True
        return CLUSTER if waits else 0

    def _guarded(self, instruction, threads):
        if not instruction.predicate:
            return slice(None)
        return self.register(instruction.predicate)[threads] != instruction.negated

    def _execute(self, instruction, act):
        opcode, operands = instruction.opcode, instruction.operands
        method = getattr(self, f"_{opcode[0]}", self._arithmetic)
        try:
            method(opcode, operands, act)
        except Fault as fault:
            raise Fault(f"{self.kernel.name}: {instruction}: {fault}") from None
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise NotImplementedError(f"{self.kernel.name}: {instruction}") from error

    def _arithmetic(self, opcode, operands, act):
        name, kind = opcode[0], opcode[-1]
        a = self.read(operands[1], kind, act)
        if "approx" in opcode:
            return self.write(operands[0], APPROXIMATE[f"{name}.{kind}"](a), act)
        if name in UNARY:
            return self.write(operands[0], UNARY[name](a), act)
        b = self.read(operands[2], kind, act)
        result = (FLOATING if kind[0] == "f" else INTEGER)[name](a, b)
        self.write(operands[0], result.astype(a.dtype, copy=False), act)

    def _fma(self, opcode, operands, act):
        self.write(operands[0], self.fma(*(self.read(o, opcode[-1], act) for o in operands[1:])), act)

    def _mul(self, opcode, operands, act):
        if opcode[-1][0] == "f" or "lo" in opcode:
            return self._arithmetic(opcode, operands, act)
        self.write(operands[0], self._product(opcode, operands, act), act)

    def _mad(self, opcode, operands, act):
        kind = opcode[-1][0] + "64" if "wide" in opcode else opcode[-1]
        self.write(operands[0], self._product(opcode, operands, act) + self.read(operands[3], kind, act), act)

    def _product(self, opcode, operands, act):
        kind = opcode[-1]
        a, b = self.read(operands[1], kind, act), self.read(operands[2], kind, act)
        if "lo" in opcode:
            return a * b
        wide = a.astype(numpy_type(kind[0] + "64")) * b.astype(numpy_type(kind[0] + "64"))
        if "wide" in opcode:
            return wide
        if BITS[kind] != 32:
            raise NotImplementedError
        return (wide >> 32).astype(a.dtype)

    def _shl(self, opcode, operands, act):
        a, n = self.read(operands[1], opcode[-1], act), self.read(operands[2], "u32", act)
        bits = BITS[opcode[-1]]
        shifted = a << np.minimum(n, bits - 1).astype(a.dtype)
        self.write(operands[0], np.where(n < bits, shifted, a.dtype.type(0)), act)

    def _shr(self, opcode, operands, act):
        a, n = self.read(operands[1], opcode[-1], act), self.read(operands[2], "u32", act)
        bits = BITS[opcode[-1]]
        shifted = a >> np.minimum(n, bits - 1).astype(a.dtype)
        beyond = shifted if a.dtype.kind == "i" else a.dtype.type(0)
        self.write(operands[0], np.where(n < bits, shifted, beyond), act)

    def _bfe(self, opcode, operands, act):
        """Bits of a field; a signed one is extended."""
        kind = opcode[-1]
        a, start, length = (self.read(o, k, act) for o, k in zip(operands[1:], (kind, "u8", "u8"), strict=True))
        whole = a.dtype.type(BITS[kind])
        left = (whole - start - length).astype(a.dtype)
        self.write(operands[0], (a << left) >> (left + start.astype(a.dtype)), act)

    def _prmt(self, opcode, operands, act):
        """Four bytes, each one of the eight of the first two operands, as four digits of the third say."""
        low, high, selector = (self.read(o, "u32", act).astype(np.uint64) for o in operands[1:])
        if (selector & np.uint64(0x8888)).any():  # a byte's sign in every bit
            raise NotImplementedError
        pair, eight = low | high << np.uint64(32), np.uint64(8)
        result = np.zeros_like(pair)
        for i in map(np.uint64, range(4)):
            digit = selector >> i * np.uint64(4) & np.uint64(7)
            result |= (pair >> digit * eight & np.uint64(0xFF)) << i * eight
        self.write(operands[0], result.astype(np.uint32), act)

    def _mov(self, opcode, operands, act):
        target, source, kind = *operands, opcode[-1]
        if target[0] == "{":  # the first of the parts is the lowest
            parts = [p.strip() for p in target.strip("{}").split(",")]
            bits = BITS[kind] // len(parts)
            values = self.read(source, kind, act)
            for i, part in enumerate(parts):
                self.write(part, (values >> (i * bits)).astype(UNSIGNED[bits]), act)
        elif source[0] == "{":
            parts = [p.strip() for p in source.strip("{}").split(",")]
            bits, whole = BITS[kind] // len(parts), UNSIGNED[BITS[kind]]
            values = [self.read(part, f"b{bits}", act).astype(whole) << whole(i * bits) for i, part in enumerate(parts)]
            self.write(target, np.bitwise_or.reduce(values), act)
        else:
            self.write(target, self.read(source, kind, act), act)

    def _cvta(self, opcode, operands, act):
        """Addresses in shared and local memory count from the start of the block's or the thread's own part."""
        address = self.read(operands[1], "u64", act)
        for space in set(opcode) & {"shared", "local"}:
            array, size, owners = self._own(space)
            start = (array.ctypes.data + owners[act] * size).astype(np.uint64)
            address = address - start if "to" in opcode else address + start
        self.write(operands[0], address, act)

    def _mapa(self, opcode, operands, act):
        """The address in the shared memory of another block of the cluster: a generic one, or one of shared::cluster,
        which has the block's rank, plus one, in its upper half."""
        own, rank = self.read(operands[1], opcode[-1], act), self.read(operands[2], "u32", act)
        if (rank >= self.cluster).any():
            raise Fault("a block that the cluster does not have")
        if "shared::cluster" in opcode:
            return self.write(operands[0], own | (rank + np.uint32(1)) << np.uint32(RANK_BIT), act)
        threads = np.arange(self.count)[act]
        number = threads // self.in_block
        start = np.uint64(self.shared.ctypes.data) + (number * self.shared_size).astype(np.uint64)
        if ((own < start) | (own - start > np.uint64(self.shared_size))).any():
            raise Fault("no address in the block's shared memory")
        distance = (rank.astype(np.int64) - number % self.cluster) * self.shared_size
        self.write(operands[0], own + distance.astype(np.uint64), act)

    def _own(self, space):
        """The memory of all blocks or threads, the size of each one's part, and whose part it is for every thread."""
        threads = np.arange(self.count)
        if space == "local":
            return self.local, self.local_size, threads
        return self.shared, self.shared_size, threads // self.in_block

    def _cvt(self, opcode, operands, act):
        to, source = opcode[-2:]
        values = self.read(operands[1], source, act)
        if source[0] == "f" and to[0] != "f":
            raise NotImplementedError
        if "rni" in opcode:
            values = np.rint(values)
        self.write(operands[0], values.astype(numpy_type(to)), act)

    def _setp(self, opcode, operands, act):
        result = compare(opcode[1], self.read(operands[1], opcode[-1], act), self.read(operands[2], opcode[-1], act))
        if len(opcode) == 4:
            result = INTEGER[opcode[2]](result, self.read(operands[3], "pred", act))
        self.write(operands[0], result, act)

    def _selp(self, opcode, operands, act):
        yes, no = (self.read(o, opcode[-1], act) for o in operands[1:3])
        self.write(operands[0], np.where(self.read(operands[3], "pred", act), yes, no), act)

    def _shfl(self, opcode, operands, act):
        mode, threads = opcode[2], np.arange(self.count)[act]
        lane, argument = threads % WARP, self.read(operands[2], "s32", act)
        source = {"bfly": lane ^ argument, "idx": argument, "down": lane + argument, "up": lane - argument}[mode]
        source = np.where((source >= 0) & (source < WARP), source, lane)
        mask = self.read(operands[4], "u32", act)
        present = np.zeros(self.count, bool)
        present[threads] = True
        first, bits = threads - lane, np.arange(WARP)
        if (~present[first[:, None] + bits] & (mask[:, None] >> bits.astype(np.uint32) & 1).astype(bool)).any():
            raise Fault("lanes of the mask do not take part")
        self.write(operands[0].split("|")[0], self.register(operands[1])[first + source], act)

    def _call(self, opcode, operands, act):
        if operands != ("__assertfail",):
            raise NotImplementedError
        raise Fault("a requirement does not hold")

    def _bar(self, opcode, operands, act):
        """bar.warp.sync: the threads of a warp go together anyway."""

    def _ld(self, opcode, operands, act):
        kind = opcode[-1]
        for offset, register in self._elements(opcode, operands[0]):
            memory, addresses = self._space(opcode, operands[1], offset, act)
            self.write(register, memory.load(addresses, BITS[kind] // 8).view(numpy_type(kind)), act)

    def _st(self, opcode, operands, act):
        for offset, register in self._elements(opcode, operands[1]):
            memory, addresses = self._space(opcode, operands[0], offset, act)
            memory.store(addresses, self.read(register, opcode[-1], act))

    def _cp(self, opcode, operands, act):
        """cp.async copies at once; cp.async.wait_all has nothing to wait for."""
        if opcode[1:] == ("async", "wait_all"):
            return
        width = operands[2]
        if opcode[1] != "async" or opcode[3:] != ("shared", "global") or width not in COPIES[opcode[2]]:
            raise NotImplementedError
        together = {"4": ("b32",), "8": ("v2", "b32"), "16": ("v4", "b32")}[width]
        for offset in range(0, int(width), 4):
            (to, addresses), (source, from_there) = (
                self._space((space, *together), operand, offset, act)
                for space, operand in (("shared", operands[0]), ("global", operands[1]))
            )
            to.store(addresses, source.load(from_there, 4))

    def _elements(self, opcode, operand):
        registers = [r.strip() for r in operand.strip("{}").split(",")]
        return [(i * BITS[opcode[-1]] // 8, register) for i, register in enumerate(registers)]

    def _space(self, opcode, operand, offset, act):
        addresses, width = self.addresses(operand, act), BITS[opcode[-1]] // 8
        together = width * (int(opcode[-2][1:]) if opcode[-2] in ("v2", "v4") else 1)
        if (addresses % np.uint64(together)).any():
            raise Fault(f"an address that is no multiple of {together}")
        addresses = addresses + np.uint64(offset)
        if not {"shared", "shared::cta", "shared::cluster", "local"} & set(opcode):
            return self.memory, addresses
        space = "local" if "local" in opcode else "shared"
        array, size, owners = self._own(space)
        owner = owners[act]
        if "shared::cluster" in opcode:
            rank = (addresses >> np.uint64(RANK_BIT)).astype(np.int64) - 1
            owner = np.where(rank < 0, owner, owner // self.cluster * self.cluster + rank)
            addresses = addresses & np.uint64((1 << RANK_BIT) - 1)
        if (addresses + np.uint64(width) > size).any():
            raise Fault(f"access beyond the {size} bytes of {space} memory")
        return Memory([(0, array)]), addresses + (owner * size).astype(np.uint64)
