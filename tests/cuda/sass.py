"""Reads the machine code of GPU kernels: cuobjdump's listing, the loops in it, and the memory accesses in those."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path


def cuobjdump() -> str | None:
    """The path of cuobjdump: the CUDA toolkit's, or the copy that Triton brings; None without either."""
    if found := shutil.which("cuobjdump"):
        return found
    triton = importlib.util.find_spec("triton")
    for folder in (triton.submodule_search_locations or []) if triton else []:
        if found := shutil.which(f"{folder}/backends/nvidia/bin/cuobjdump"):
            return found
    return None


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def width(self) -> int:
        """Bits that a load or store moves."""
        parts = self.opcode.split(".")
        for part, bits in (
            ("128", 128),
            ("64", 64),
            ("U16", 16),
            ("S16", 16),
            ("U8", 8),
            ("S8", 8),
        ):
            if part in parts:
                return bits
        return 32

    def moves(self, opcode: str, widths: tuple[int, ...]) -> bool:
        """Whether it is `opcode`, with any suffixes, and moves one of these numbers of bits (any without)."""
        return self.opcode.split(".")[0] == opcode and (not widths or self.width in widths)

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        if not self.opcode.startswith("BRA"):
            return None
        return int(re.findall(r"0x([0-9a-f]+)", self.operands)[-1], 16)


@dataclass(frozen=True)
class Region:
    """Part of a kernel: instructions in the order of their addresses, and which may follow which."""

    instructions: list[Instruction]
    follow: list[list[int]]

    def __len__(self) -> int:
        return len(self.instructions)

    def has(self, opcode: str, *widths: int) -> bool:
        return any(i.moves(opcode, widths) for i in self.instructions)

    def most(self, opcode: str, *widths: int) -> int:
        """The most accesses of these widths (all without) that one pass meets, with each inner loop run once."""
        longest = [0] * len(self)
        for place in reversed(range(len(self))):
            onward = [longest[target] for target in self.follow[place] if target > place]
            own = self.instructions[place].moves(opcode, widths)
            longest[place] = own + max(onward, default=0)
        return max(longest)


@dataclass
class Kernel:
    name: str  # demangled, without namespaces and parameters: pgd_step_linf_kernel<4, true, float>
    arch: int
    instructions: list[Instruction]
    registers: int = 0
    usage: dict[str, int] = field(default_factory=dict)  # bytes of STACK, LOCAL, SHARED

    @cached_property
    def whole(self) -> Region:
        return Region(self.instructions, self._successors())

    @cached_property
    def loops(self) -> list[Region]:
        """The natural loops, the smallest first."""
        follow = self.whole.follow
        before: dict[int, list[int]] = {}
        for place, targets in enumerate(follow):
            for target in targets:
                before.setdefault(target, []).append(place)
        bodies: dict[int, set[int]] = {}
        for place, targets in enumerate(follow):
            for head in targets:
                if head > place:
                    continue
                body = bodies.setdefault(head, {head})  # two ways back to one head are one loop
                open_places = [place]
                while open_places:
                    at = open_places.pop()
                    if at not in body:
                        body.add(at)
                        open_places += before.get(at, [])
        # A branch to itself is how the compiler fills up behind the last instruction.
        return [self._part(b) for b in sorted(bodies.values(), key=len) if len(b) > 1]

    def loops_with(self, opcode: str, width: int) -> list[Region]:
        """The innermost loops that hold such an access."""
        holding = [loop for loop in self.loops if loop.has(opcode, width)]
        return [
            loop
            for place, loop in enumerate(holding)
            if not any(
                set(inner.instructions) < set(loop.instructions) for inner in holding[:place]
            )
        ]

    def _part(self, places: set[int]) -> Region:
        order = sorted(places)
        new = {place: at for at, place in enumerate(order)}
        follow = [[new[t] for t in self.whole.follow[place] if t in new] for place in order]
        return Region([self.instructions[place] for place in order], follow)

    def _successors(self) -> list[list[int]]:
        place_at = {i.address: place for place, i in enumerate(self.instructions)}
        follow = []
        for place, instruction in enumerate(self.instructions):
            leaves = instruction.opcode in ("EXIT", "RET") or instruction.opcode.startswith("RET.")
            target = instruction.target
            targets = [] if target is None else [place_at[target]]
            falls_through = bool(instruction.predicate) or not (leaves or targets)
            # "BRA.DIV UR4, 0x..." and "BRA P1, 0x..." carry their condition as an operand.
            if targets and "," in instruction.operands:
                falls_through = True
            if falls_through and place + 1 < len(self.instructions):
                targets.append(place + 1)
            follow.append(targets)
        return follow


INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")


def read_kernels(binary: Path) -> list[Kernel]:
    """All kernels of a cubin, an executable or a library, of every architecture in it."""
    tool = cuobjdump()
    assert tool
    kernels: dict[tuple[int, str], Kernel] = {}
    arch, kernel = 0, None
    for line in _lines(tool, "-sass", binary):
        if found := re.search(r"code for sm_(\d+)", line):
            arch = int(found[1])
        elif found := re.search(r"Function : (\S+)", line):
            kernel = kernels[arch, found[1]] = Kernel(found[1], arch, [])
        elif kernel and (found := INSTRUCTION.match(line)):
            address, predicate, opcode, operands = found.groups(default="")
            kernel.instructions.append(Instruction(int(address, 16), predicate, opcode, operands))
    name = ""
    for line in _lines(tool, "--dump-resource-usage", binary):
        if found := re.search(r"arch = sm_(\d+)", line):
            arch = int(found[1])
        elif found := re.search(r"Function (\S+):", line):
            name = found[1]
        elif "REG:" in line and (arch, name) in kernels:
            usage = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            kernels[arch, name].registers = usage.pop("REG")
            kernels[arch, name].usage = usage
    for kernel, name in zip(kernels.values(), _demangle(kernels), strict=True):
        kernel.name = name
    return list(kernels.values())


def _lines(tool: str, option: str, binary: Path) -> list[str]:
    listed = subprocess.run([tool, option, binary], check=True, capture_output=True, text=True)
    return listed.stdout.splitlines()


def _demangle(kernels: dict[tuple[int, str], Kernel]) -> list[str]:
    mangled = "\n".join(name for _, name in kernels)
    readable = subprocess.run(
        ["c++filt"], input=mangled, check=True, capture_output=True, text=True
    )
    names = []
    for line in readable.stdout.splitlines():
        line = re.sub(r"\(anonymous namespace\)::|\b\w+::|^void ", "", line)
        names.append(line.split("(")[0])
    return names
