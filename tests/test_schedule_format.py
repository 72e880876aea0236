"""The canonical form, as hand-written examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcl_cli.errors import ConfigError
from fastcl_cli.schedule.library import builtin_schedules
from fastcl_cli.schedule.load import ScheduleError
from fastcl_cli.schedule.rewrite import formatted, rewrite

MESSY = """\ufeff#first\r

method   dino ;# the method


  # about the batch
batch
   512   # inside
   ;lr 5.00E-4 per 256;;
model vit_small_patch16_224( depth=4,num_heads = 2 );  data "a  b.beton" ;


epochs 0-60:drop 0.50 on both patch 32; # strong
# between
epochs 60 - 100 :
  full   # weak
# the end

# really"""

TIDY = """#first

method dino;  # the method

# about the batch
# inside
batch 512;
lr 5e-4 per 256;
model vit_small_patch16_224 (depth=4, num_heads=2);
data "a  b.beton";

epochs 0-60:   drop 0.5 on both patch 32;  # strong
# between
epochs 60-100: full;  # weak
# the end

# really
"""


def test_canonical_form() -> None:
    assert formatted("f", MESSY.encode()) == TIDY
    assert formatted("f", TIDY.encode()) == TIDY


@pytest.mark.parametrize("path", builtin_schedules().values(), ids=lambda p: p.stem)
def test_builtin_schedules_are_canonical(path: Path) -> None:
    assert formatted(path.name, path.read_bytes()) == path.read_text(encoding="utf-8")


def test_ramps_and_shares() -> None:
    text = b"length 50 epochs;0 %-60%:drop 0.75->25% in 4 patch 56->16;60%-100.0%:full batch 5e2"
    assert formatted("f", text) == (
        "length 50 epochs;\n"
        "0%-60%:   drop 0.75 -> 25% in 4 patch 56 -> 16;\n"
        "60%-100%: full batch 500;\n"
    )


def test_auto() -> None:
    text = b"choices drop 0.50 0 75 %patch 32 16;epochs 0-100:batch 5e2 auto;epochs 100-110 :full"
    assert formatted("f", text) == (
        "choices drop 0.5 0 75% patch 32 16;\n"
        "epochs 0-100:   batch 500 auto;\n"
        "epochs 100-110: full;\n"
    )


def test_empty_files_stay_empty() -> None:
    assert formatted("f", b"") == ""
    assert formatted("f", b" ;; \n;") == ""
    assert formatted("f", b";; # alone") == "# alone\n"


def test_files_are_rewritten_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.fcs"
    path.write_bytes(MESSY.encode())
    path.chmod(0o640)
    assert rewrite(str(path), check=True)
    assert path.read_bytes() == MESSY.encode()
    assert rewrite(str(path), check=False)
    assert path.read_bytes() == TIDY.encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert not rewrite(str(path), check=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.fcs"]


def test_broken_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.fcs"
    path.write_text("epochs 0-60 full;")
    with pytest.raises(ScheduleError):
        rewrite(str(path), check=False)
    assert path.read_text() == "epochs 0-60 full;"
    with pytest.raises(ConfigError, match="no such file"):
        rewrite("moco_opt", check=False)
