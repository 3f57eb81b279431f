"""Clusters of two blocks for kernels in Gluon, which has none for Hopper: what it wrote in PTX is changed before ptxas.

A kernel says in clusters.py which copy is for both blocks and which arrival at a barrier counts in both. What it says
is a line that no assembler takes, so a kernel that was not changed is refused instead of wrong. Its blocks 2i and
2i + 1 are a cluster in any launch of an even number of blocks: the code itself says so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sd3par.errors import Sd3parError

# In the lines themselves, hence in the key under which Triton keeps a kernel: another way to change it, another key.
_EDITION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
COPY, ARRIVE = f"sd3par_copy_{_EDITION};", f"sd3par_arrive_{_EDITION};"
_ENTRY = re.compile(r"^\.reqntid.*$", re.MULTILINE)
_LEAVES = re.compile(r"\s*(\$?\w+:|(@!?%\w+\s+)?(bra|brx|ret|exit)\b)")  # begins or ends a run of instructions
_COPIES = re.compile(
    r"(@!?%\w+ cp\.async\.bulk\.tensor\.\dd\.shared::cluster\.global\.mbarrier::complete_tx::bytes)( \[.*\]);"
)
_ARRIVES = re.compile(r"((@!?%\w+) mbarrier\.arrive\.shared::cta\.b64 _, \[(%\w+)\];)")
_BOTH_COPY = r"""{
	.reg .b16 both;
	mov.b16 both, 3;
	\1.multicast::cluster\2, both;
	}"""
_BOTH_ARRIVE = r"""\1
	{
	.reg .b32 other, there;
	mov.u32 other, %cluster_ctarank;
	xor.b32 other, other, 1;
	mapa.shared::cluster.u32 there, \3, other;
	\2 mbarrier.arrive.shared::cluster.b64 _, [there];
	}"""
_CHANGES = {COPY: (_COPIES, _BOTH_COPY), ARRIVE: (_ARRIVES, _BOTH_ARRIVE)}


class ClusterError(Sd3parError):
    """A kernel's code is not what this edition of Triton writes."""


def with_clusters(ptx: str) -> str:
    """Returns a kernel's code with what it says of clusters done; code that says nothing as it is."""
    if not any(said in ptx for said in _CHANGES):
        return ptx
    changed, entries = _ENTRY.subn(r"\g<0>\n.explicitcluster\n.reqnctapercluster 2, 1, 1", "\n".join(_lines(ptx)))
    if entries != 1:
        raise ClusterError(f"{entries} entries in a kernel's code instead of one")
    return changed + "\n"


def _lines(ptx: str) -> Iterator[str]:
    """Yields lines, changed where the kernel says so: the next copy or arrival, before any jump."""
    said = ""
    for line in ptx.splitlines():
        found = next((one for one in _CHANGES if one in line), "")
        if said and (found or _LEAVES.match(line)):
            raise ClusterError(f"nothing follows {said} before {line.strip()}")
        if found:
            said = found
            continue
        for one, (pattern, instead) in _CHANGES.items():
            if said and pattern.search(line):
                if one != said:
                    raise ClusterError(f"{line.strip()} follows {said}")
                line, said = pattern.sub(instead, line), ""
                break
        yield line
    if said:
        raise ClusterError(f"nothing follows {said}")


def install(knobs: Any) -> None:
    """Lets Triton change what it compiles from now on; `knobs` are triton.knobs. Another's hook still comes first."""
    before = knobs.runtime.add_stages_inspection_hook

    def changed(backend: Any, stages: dict[str, Callable[..., Any]], *arguments: Any) -> None:
        if before is not None:
            before(backend, stages, *arguments)
        to_ptx = stages.get("ptx")
        if to_ptx is not None:
            stages["ptx"] = lambda source, metadata: with_clusters(to_ptx(source, metadata))

    knobs.runtime.add_stages_inspection_hook = changed
