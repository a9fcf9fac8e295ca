"""PTX text as kernels: parameters, variables, labels and a list of instructions."""

import re
from dataclasses import dataclass, field

BITS = {"pred": 1, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "bf16": 16, "b32": 32}
BITS |= {"u32": 32, "s32": 32, "f32": 32, "b64": 64, "u64": 64, "s64": 64, "f64": 64}

ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\n\{\n(.*?)\n\}", re.DOTALL)
VARIABLE = re.compile(r"\.(param|shared|local)\b(?:\s+\.align\s+(\d+))?\s+\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?")
POINTEE = re.compile(r"\.ptr(\s+\.(global|const|shared|local))?(\s+\.align\s+\d+)?")  # what a parameter points to
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%[\w$]+)(?:<(\d+)>)?")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")


@dataclass
class Instruction:
    opcode: tuple  # ("add", "rn", "f32")
    operands: tuple
    predicate: str = ""
    negated: bool = False

    def __str__(self):
        guard = f"@{'!' * self.negated}{self.predicate} " if self.predicate else ""
        return f"{guard}{'.'.join(self.opcode)} {', '.join(self.operands)}"


@dataclass
class Kernel:
    name: str
    parameters: dict = field(default_factory=dict)  # name: (offset, bytes), as are the shared and the local variables
    shared: dict = field(default_factory=dict)
    local: dict = field(default_factory=dict)
    strings: list = field(default_factory=list)  # their names
    registers: dict = field(default_factory=dict)  # prefix or name: type
    labels: dict = field(default_factory=dict)  # name: index of an instruction
    code: list = field(default_factory=list)


def _place(variables, declaration):
    """Put a declared variable behind the others."""
    _, align, kind, name, count = declaration
    size = BITS[kind] // 8 * int(count or 1) if count != "" or kind != "b8" else 0
    end = max((offset + length for offset, length in variables.values()), default=0)
    align = int(align) if align else BITS[kind] // 8
    variables[name] = ((end + align - 1) // align * align, size)


def _statement(kernel, text):
    text = text.lstrip("{ ")  # the beginning of a scope
    label = re.match(r"([\w$]+):\s*", text)
    if label:
        kernel.labels[label[1]] = len(kernel.code)
        text = text[label.end() :]
    if not text or text in "{}" or text.startswith((".pragma", ".loc ", ".file ")):
        return
    if text.startswith((".param", "st.param", ".reg .b32 temp_param_reg")):  # the arguments of a call
        return
    if text.startswith(".reg"):
        kind, name, count = REGISTERS.match(text).groups()
        kernel.registers[name] = kind
        return
    if text.startswith("."):
        declaration = VARIABLE.match(text).groups()
        _place({"shared": kernel.shared, "local": kernel.local}[declaration[0]], declaration)
        return
    guard = re.match(r"@(!?)(%[\w$]+)\s+", text)
    negated, predicate = guard.groups() if guard else ("", "")
    opcode, _, operands = (text[guard.end() :] if guard else text).partition(" ")
    operands = tuple(o.strip() for o in OPERAND.findall(operands))
    kernel.code.append(Instruction(tuple(opcode.split(".")), operands, predicate, bool(negated)))


def parse(text):
    """{name: Kernel} of a PTX file."""
    text = re.sub(r"//[^\n]*", "", text)
    outside = ENTRY.sub("", text)
    kernels = {}
    for name, parameters, _, body in ENTRY.findall(text):
        kernel = kernels[name] = Kernel(name)
        for parameter in filter(None, (p.strip() for p in parameters.split(","))):
            _place(kernel.parameters, VARIABLE.match(POINTEE.sub("", parameter)).groups())
        for declaration in VARIABLE.findall(outside):  # shared memory of the whole file: the dynamic array
            if declaration[0] == "shared" and declaration[3] in body:
                _place(kernel.shared, declaration)
        kernel.strings = re.findall(r"\.global\s+\.align\s+1\s+\.b8\s+([\w$]+)\[", outside)
        body = re.sub(r"\bcall[^;]*?(\w+)\s*,[^;]*;", r"call \1;", body)
        for line in body.replace("\t", " ").split("\n"):
            for statement in re.sub(r":\s+", ":;", line).replace(";", ";\n").split("\n"):
                _statement(kernel, statement.strip(" ;"))
    return kernels
