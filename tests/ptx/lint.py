"""The lint: a kernel's float instructions are those of the contract, each an IEEE operation rounded to nearest."""

FLOATS = {"f16", "f16x2", "bf16", "bf16x2", "tf32", "f32", "f32x2", "f64"}
ROUNDED = {"add", "sub", "mul", "div", "rcp", "fma", "sqrt"}  # with .rn
EXACT = {"mov", "ld", "st", "neg", "abs", "selp", "setp", "copysign"}
ROUNDING = {"rn", "rz", "rm", "rp", "approx", "full", "ftz", "sat"}
MOVES = {"const", "global", "shared", "local", "param", "nc", "v2", "v4", "volatile", "relaxed", "weak"}
MOVES |= {"shared::cta", "shared::cluster"}
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan", "and", "or"}


def _is_number_constant(operand):
    """A float constant that is neither NaN nor -0: with it, min and max are the contract's comparison and selection."""
    if not operand.lower().startswith("0f"):
        return False
    bits = int(operand[2:], 16)
    return bits & 0x7FFFFFFF <= 0x7F800000 and bits != 0x80000000


def violation(instruction):
    """What the contract has against an instruction, or None."""
    name, modifiers = instruction.opcode[0], set(instruction.opcode[1:])
    if name in ("atom", "red", "mma", "wmma", "wgmma"):
        return "an order that is not the contract's"
    if not modifiers & FLOATS:
        return None
    if name in ROUNDED:
        return None if modifiers - FLOATS == {"rn"} else "not rounded to nearest, gradually underflowing"
    if name in EXACT:
        unknown = modifiers - FLOATS - MOVES - COMPARISONS
        return f"unexpected .{'.'.join(sorted(unknown))}" if unknown else None
    if name in ("min", "max"):
        plain = modifiers <= FLOATS and any(map(_is_number_constant, instruction.operands[1:]))
        return None if plain else "differs from comparison and selection where an operand is NaN or a zero"
    if name == "cvt":
        return None if modifiers & ROUNDING <= {"rn"} else "a conversion that is not rounded to nearest"
    return "no operation of the contract"


def violations(kernel):
    """Lines of text, one for each instruction that the contract does not have."""
    found = ((instruction, violation(instruction)) for instruction in kernel.code)
    return [f"{kernel.name}: {instruction}: {reason}" for instruction, reason in found if reason]
