"""Machine code in nvdisasm's format."""

from __future__ import annotations

from bench.codegen import sass

# a loop with a product whose left operand lies in R152 to R155 and whose accumulators are R24 to R151
LOOP = """
    FMUL R152, R1, R2
    .L_x_0:
    {before}
    HGMMA.64x256x16.F32.BF16 R24, R152, gdesc[UR8].tnspB, R24, gsb0
    {after}
    @P0 BRA `(.L_x_0)
    WARPGROUP.DEPBAR.LE gsb0, 0x0
    FMUL R152, R24, R25
    EXIT
"""


def printed(text: str) -> str:
    """Format instructions and labels as nvdisasm does."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return "\n".join(
        line if line.endswith(":") else f"        /*{16 * n:04x}*/   {line} ;" for n, line in enumerate(lines)
    )


def program(text: str) -> sass.Program:
    return sass.parse(printed(text))
