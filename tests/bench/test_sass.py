"""Counting of SASS: the way through a listing with known counts, and one real kernel."""

import re
from pathlib import Path

import pytest
import sass
import sass_path
import speed

ROOT = Path(__file__).resolve().parents[2]
LISTING = """
	Function : first
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   S2R R0, SR_TID.X ;                 /* 0x0000000000027919 */
                                                                      /* 0x000e220000002500 */
        /*0010*/              @P0 EXIT ;                              /* 0x0000000000027919 */
        /*0020*/                   LDG.E.U8.CONSTANT R1, desc[UR6][R2.64] ; /* 0x0 */
        /*0030*/              @!P1 BRA 0x60 ;                         /* 0x0000000000027919 */
        /*0040*/                   CALL.REL.NOINC 0x100 ;             /* 0x0000000000027919 */
        /*0050*/                   BRA 0x80 ;                         /* 0x0000000000027919 */
        /*0060*/                   MUFU.RSQ R3, R1 ;                  /* 0x0000000000027919 */
        /*0070*/                   FMUL R3, R3, R1 ;                  /* 0x0000000000027919 */
        /*0080*/                   FSETP.GT.AND P2, PT, R3, RZ, PT ;  /* 0x0000000000027919 */
        /*0090*/               @P2 BRA 0xb0 ;                         /* 0x0000000000027919 */
        /*00a0*/                   MOV R3, RZ ;                       /* 0x0000000000027919 */
        /*00b0*/                   BRA.DIV UR4, 0x130 ;               /* 0x0000000000027919 */
        /*00c0*/                   STG.E.128 desc[UR6][R2.64], R4 ;   /* 0x0000000000027919 */
        /*00d0*/              @!P3 EXIT ;                             /* 0x0000000000027919 */
        /*00e0*/                   STG.E.U8 desc[UR6][R2.64], R8 ;    /* 0x0000000000027919 */
        /*00f0*/                   EXIT ;                             /* 0x0000000000027919 */
        /*0100*/                   FADD R1, R1, 1 ;                   /* 0x0000000000027919 */
        /*0110*/                   FADD R1, R1, 1 ;                   /* 0x0000000000027919 */
        /*0120*/                   RET.REL.NODEC R8 0x0 ;             /* 0x0000000000027919 */
        /*0130*/                   WARPSYNC.COLLECTIVE R1, 0x140 ;    /* 0x0000000000027919 */
        /*0140*/                   BRA 0xc0 ;                         /* 0x0000000000027919 */
        /*0150*/                   BRA 0x150;                         /* 0x0000000000027919 */
		..........
	Function : second
        /*0000*/                   MOV R0, RZ ;                       /* 0x0000000000027919 */
        /*0010*/                   LDS R1, [R0] ;                     /* 0x0000000000027919 */
        /*0020*/                   FFMA R2, R1, R1, R2 ;              /* 0x0000000000027919 */
        /*0030*/                   BRA P0, 0xc0 ;                     /* 0x0000000000027919 */
        /*0040*/                   FFMA R2, R1, R1, R2 ;              /* 0x0000000000027919 */
        /*0050*/               @P1 BRA 0x20 ;                         /* 0x0000000000027919 */
        /*0060*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ; /* 0x0000000000027919 */
        /*0070*/              @UP0 BRA 0x60 ;                         /* 0x0000000000027919 */
        /*0080*/              @!P1 BRA 0x10 ;                         /* 0x0000000000027919 */
        /*0090*/                   STG.E desc[UR6][R2.64], R4 ;       /* 0x0000000000027919 */
        /*00a0*/                   EXIT ;                             /* 0x0000000000027919 */
        /*00b0*/                   NOP;                               /* 0x0000000000027919 */
        /*00c0*/                   IADD3 R0, R0, 0x1, RZ ;            /* 0x0000000000027919 */
        /*00d0*/                   IADD3 R0, R0, 0x1, RZ ;            /* 0x0000000000027919 */
        /*00e0*/                   BRA 0x40 ;                         /* 0x0000000000027919 */
"""
CODES = sass_path.parse(LISTING)


def addresses(way):
    return [i.address // 16 for i in way]


def test_listing_is_read():
    assert [len(code) for code in CODES.values()] == [22, 15]
    load = CODES["first"][2]
    assert (load.name, load.bits, load.operands) == ("LDG", 8, "R1, desc[UR6][R2.64]")
    assert [i.bits for i in CODES["first"] if i.name == "STG"] == [128, 8]
    assert CODES["second"][7].predicate == "UP0" and CODES["second"][3].is_conditional


def test_the_way_is_the_longest_without_calls():
    way = sass_path.straight(CODES["first"])
    assert addresses(way) == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert sass.stored(4)(way) == 17 / 4


def test_what_the_way_meets_can_be_said():
    code = CODES["first"]
    assert addresses(sass_path.straight(code, avoid=r"STG\.E\.U8"))[-1] == 13  # by an EXIT
    through_call = sass_path.straight(code, through="CALL")
    assert addresses(through_call) == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15]
    assert sass_path.straight(code, through="HMMA") == []
    assert sass_path.straight(code, avoid="FSETP") == []
    assert addresses(sass_path.straight(code, through="", avoid="FSETP")) == [0, 1]


def test_innermost_loop_and_blocks_that_lie_elsewhere():
    code = CODES["second"]
    assert addresses(sass_path.loop(code, "FFMA")) == [2, 3, 12, 13, 14, 4, 5]
    assert sass.each("FFMA")(sass_path.loop(code, "FFMA")) == 2
    assert addresses(sass_path.loop(code, "HMMA")) == [6, 7]
    assert addresses(sass_path.loop(code, "LDS")) == [1, 2, 3, 12, 13, 14, 4, 5, 6, 7, 8]
    assert sass_path.loop(code, "STG") == []
    assert addresses(sass_path.straight(code))[-2:] == [9, 10]


def test_every_kernel_is_counted_with_the_flags_of_make_kernels():
    makefile = re.sub(r"\s*\\\n\s*", " ", (ROOT / "Makefile").read_text())
    assert f"nvcc {sass.FLAGS} " in makefile
    patterns = [way.kernel for ways in sass.WAYS.values() for way in ways]
    for path in (ROOT / "csrc").rglob("*cuda.*"):
        text = re.sub(r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)", "", path.read_text())
        for kernel in re.findall(r"__global__ void\s+(\w+)\(", text):
            assert any(re.match(rf"{kernel}\b", p) for p in patterns), kernel


def test_tables_put_what_was_beside_what_is():
    row = {"label": "a", "unit": "element", "instructions": 98.0, "registers": 32}
    row |= {"spill_bytes": 0, "shared_bytes": 0, "classes": {"FFMA": 9, "STG": 1}}
    entry = {"commit": "abc", "arch": "sm_90", "nvcc": "13.0", "rows": [row]}
    was, now = {"x.cu": entry}, {"x.cu": entry | {"rows": [row | {"instructions": 61.5}]}}
    assert sass.table({"before": was, "now": now}) == [
        ["a", "61.5", "element", "98", "32", "0", "0", "1 STG"]
    ]
    assert sass.table({"before": was})[0][1] == "98"
    text = " ".join(speed.text({}, {}, {"before": was, "now": now}).split())
    assert "| a | 61.5 | element | 98 | 32 | 0 | 0 |" in text and '"before" at commit abc' in text


@pytest.mark.skipif(bool(sass.missing_tools()), reason="no nvcc, cuobjdump or nvdisasm")
def test_a_real_kernel(tmp_path, monkeypatch):
    source = tmp_path / "scale_cuda.cu"
    source.write_text(
        "template <class T> __global__ void scale_kernel(float4* x, T a) {"
        "  float4 v = x[threadIdx.x];"
        "  x[threadIdx.x] = make_float4(a * v.x, a * v.y, a * v.z, a * v.w); }"
        "template __global__ void scale_kernel<float>(float4*, float);"
    )
    ways = (sass.Way("scale", "scale_kernel<float>", "element", sass.stored(4)),)
    monkeypatch.setitem(sass.WAYS, source.name, ways)
    entry = sass.count(tmp_path, source, "sm_90")
    (row,) = entry["rows"]
    assert (row["kernel"], entry["kernels"], entry["spilling"]) == ("scale_kernel<float>", 1, {})
    assert row["classes"]["FMUL"] == 4 and row["classes"]["LDG"] == row["classes"]["STG"] == 1
    assert row["instructions"] == row["on_the_way"] / 4 < 5 and 0 < row["registers"] < 20
