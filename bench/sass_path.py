"""The instructions that a kernel issues on its way, from the control flow of disassembled SASS.

The way is the longest one of those with the fewest calls, from entry to exit or once through a
loop. Slow paths (the square root of a subnormal, a 64-bit division) are calls and so are not on
it; where a call cannot be avoided it counts as one instruction. What only diverged warps need is
not on it either; a loop on the way counts once. Of two alternatives the longer one counts: an upper
bound, which `through` and `avoid` narrow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

FUNCTION = re.compile(r"^\s*Function : (\S+)", re.M)
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")
NOTHING = "(?!)"  # matches nothing
WIDTH = re.compile(r"\.[US]?(8|16|64|128)(?:\.|$)")


class Instruction(NamedTuple):
    address: int
    predicate: str  # "" where it is always executed
    opcode: str
    operands: str

    @property
    def text(self) -> str:
        return f"{self.opcode} {self.operands}"

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @property
    def bits(self) -> int:
        """What a load or store moves."""
        width = WIDTH.search(self.opcode)
        return int(width[1]) if width else 32

    @property
    def target(self) -> int:
        """Of a jump or call."""
        return int(re.findall(r"0x([0-9a-f]+)", self.operands)[-1], 16)

    @property
    def is_conditional(self) -> bool:
        return bool(self.predicate or re.match(r"!?U?P\d", self.operands))


Code = Sequence[Instruction]


def parse(listing: str) -> dict[str, Code]:
    """Mangled name -> instructions, of what `cuobjdump -sass` prints."""
    _, *parts = FUNCTION.split(listing)
    return {
        name: [Instruction(int(at, 16), *rest) for at, *rest in LINE.findall(body)]
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def straight(code: Code, through: str = "STG", avoid: str = NOTHING) -> list[Instruction]:
    """From entry to exit; an instruction that matches `through` is on it, none that does `avoid`.
    Empty: there is no such way."""
    return Flow(code, avoid).way(code[0].address, through)


def loop(code: Code, through: str, avoid: str = NOTHING) -> list[Instruction]:
    """Once through the innermost loop that has most instructions which match `through`, of some
    that have as many the longest."""
    flow = Flow(code, avoid)
    wanted = {i.address for i in code if re.search(through, i.text)}
    loops = [(head, tail, flow.body(head, tail)) for tail, head in flow.back]
    loops = [found for found in loops if wanted & found[2]]
    innermost = [f for f in loops if not any(other[2] < f[2] for other in loops)]
    if not innermost:
        return []
    head, tail, _ = max(innermost, key=lambda found: (len(wanted & found[2]), len(found[2])))
    return flow.way(head, through, tail)


class Flow:
    """Where control goes from each instruction, and apart from it the jumps that close loops."""

    def __init__(self, code: Code, avoid: str = NOTHING):
        self.at = {i.address: i for i in code if not re.search(avoid, i.text)}
        self.following = {a.address: b.address for a, b in zip(code, code[1:], strict=False)}
        self.back: set[tuple[int, int]] = set()  # (from, head of the loop)
        self.order: list[int] = []  # each after all that may follow it
        self._walk(code[0].address)

    def after(self, address: int) -> list[int]:
        """What may come next."""
        i = self.at[address]
        leaves = i.name in ("EXIT", "RET", "BRX", "BRXU", "JMX", "JMXU", "BPT")
        jumps = i.name == "BRA" and not re.search(r"\.(DIV|CONV)", i.opcode)
        goes_on = not (leaves or jumps) or i.is_conditional
        found = [self.following.get(address)] if goes_on else []
        found += [i.target] if jumps else []
        return [a for a in found if a in self.at]

    def _walk(self, start: int) -> None:
        """Depth first."""
        unseen, is_open = self.at.keys() - {start}, {start}
        stack = [(start, iter(self.after(start)))]
        while stack:
            address, left = stack[-1]
            after = next(left, None)
            if after is None:
                stack.pop()
                is_open.remove(address)
                self.order.append(address)
            elif after in is_open:
                self.back.add((address, after))
            elif after in unseen:
                unseen.remove(after)
                is_open.add(after)
                stack.append((after, iter(self.after(after))))

    def body(self, head: int, tail: int) -> set[int]:
        """The instructions of the loop that jumps from `tail` to `head`."""
        before: dict[int, list[int]] = {}
        for address in self.order:
            for after in self.after(address):
                before.setdefault(after, []).append(address)
        found, stack = {head}, [tail]
        while stack:
            here = stack.pop()
            if here not in found:
                found.add(here)
                stack += before.get(here, [])
        return found

    def way(self, start: int, through: str, end: int | None = None) -> list[Instruction]:
        """From `start` to `end`, or else to where the kernel is left; empty if there is none."""
        # address -> has `through` been met from here on? -> (-calls, instructions, next, met there)
        best: dict[int, dict[bool, tuple[int, int, int, bool]]] = {}
        for address in self.order:
            i = self.at[address]
            meets = bool(re.search(through, i.text))
            ways = best[address] = {}
            if address == end or (end is None and i.name == "EXIT"):
                ways[meets] = (0, 1, -1, True)
            for after in self.after(address):
                if (address, after) not in self.back:
                    for met, (calls, length, *_) in best[after].items():
                        way = (calls - (i.name == "CALL"), length + 1, after, met)
                        ways[met or meets] = max(way, ways.get(met or meets, way))
        found, address, met = [], start, True
        while met in best.get(address, {}):
            found.append(self.at[address])
            *_, address, met = best[address][met]
        return found
