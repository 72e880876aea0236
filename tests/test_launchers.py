"""What launchers tell a process, as torchrun and Slurm 22.05 set it."""

from __future__ import annotations

import pytest

from fastcl_cli.errors import UsageError
from fastcl_cli.processes.launchers import host_names, place

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gpu1",
    "MASTER_PORT": "29400",
}
SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "4",
    "SLURM_NTASKS": "5",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_NODELIST": "gpu[09-10,12]",
    "SLURM_TASKS_PER_NODE": "2(x2),1",
    "SLURMD_NODENAME": "gpu12",
}


def test_torchrun() -> None:
    found = place({**SRUN, **TORCHRUN})  # under srun it is torchrun that counts
    assert found is not None
    assert (found.rank, found.size, found.local_rank, found.local_size) == (5, 8, 1, 4)
    assert (found.host, found.port) == ("gpu1", 29400)


def test_srun() -> None:
    found = place(SRUN)
    assert found is not None
    assert (found.rank, found.size, found.local_rank, found.local_size) == (4, 5, 0, 1)
    assert (found.host, found.port, found.machine) == ("gpu09", 24569, "gpu12")
    assert found.hosts == ("gpu09", "gpu10", "gpu12")
    first = place({**SRUN, "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"})
    assert first is not None and first.local_size == 2
    own = place({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert own is not None and (own.host, own.port) == ("10.0.0.1", 4000)
    # A step may have fewer tasks and nodes than its job.
    step = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "gpu12", "SLURM_PROCID": "2"}
    part = place({**SRUN, **step, "SLURM_STEP_TASKS_PER_NODE": "3", "SLURM_NODEID": "0"})
    assert part is not None and (part.size, part.local_size, part.host) == (3, 3, "gpu12")


def test_one_process_is_on_its_own() -> None:
    assert place({}) is None
    assert place({**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    batch_script = {k: v for k, v in SRUN.items() if k != "SLURM_STEP_ID"} | {"SLURM_PROCID": "0"}
    assert place(batch_script) is None


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({**TORCHRUN, "MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({**TORCHRUN, "RANK": "8"}, "process 8 of 8"),
        ({**SRUN, "SLURM_LOCALID": "-1"}, "SLURM_LOCALID is '-1'"),
        ({**SRUN, "SLURM_NODELIST": ""}, "SLURM_NODELIST is not set"),
        ({**SRUN, "SLURM_NODELIST": "gpu[1"}, "'gpu\\[1' is not a list"),
    ],
)
def test_what_is_wrong_is_named(variables: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        place(variables)


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("", ""),
        ("login", "login"),
        ("node[01-03,07]", "node01 node02 node03 node07"),
        ("a[9-11],b,c[1,3]-ib", "a9 a10 a11 b c1-ib c3-ib"),
        ("r[1-2]n[08-09]", "r1n08 r1n09 r2n08 r2n09"),
    ],
)
def test_lists_of_nodes(nodes: str, names: str) -> None:
    assert host_names(nodes) == tuple(names.split())


@pytest.mark.parametrize("nodes", ["a[1-3", "a]1", "a[x]", "a[1-9999999]", "a,,b", "a[[1]]"])
def test_what_is_no_list_of_nodes(nodes: str) -> None:
    with pytest.raises(UsageError, match="list of nodes"):
        host_names(nodes)
