"""The papers' protocols as data: which table, which models, and how they were measured.

What a paper does not state is ours, and said so: EleViT prints the batch alone, SimA neither batch
nor threads, LaViT neither device nor batch. Claims are what a paper says of two of its rows; a rank
test over our rounds tells whether it holds here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from edgevit.errors import UnknownNameError

__all__ = ["PROTOCOLS", "Claim", "Protocol", "find_protocol"]


@dataclass(frozen=True)
class Claim:
    """One row said to beat another.

    Args:
        better: the row that is faster, or takes less memory.
        than: the other.
        metric: ``"time"`` or ``"memory"``.
    """

    better: str
    than: str
    metric: str = "time"


@dataclass(frozen=True)
class Protocol:
    """How a table of a paper was measured.

    Args:
        name: as ``edgevit reproduce`` takes it.
        paper: as in the published figures.
        table: likewise.
        title: one line about it.
        groups: models, or blocks by label, that the table ranks among themselves.
        claims: that the paper makes of them.
        batch: images in one inference.
        threads: of the CPU.
        runs: exactly so many timed runs; None goes by time.
        memory: the table has memory; it is measured once more with one image, for the size column.
        stated: what of all that the paper states, in words.
    """

    name: str
    paper: str
    table: str
    title: str
    groups: tuple[tuple[str, ...], ...]
    claims: tuple[Claim, ...]
    batch: int = 1
    threads: int = 1
    runs: int | None = None
    memory: bool = False
    stated: str = ""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Every model and block, each once."""
        return tuple(dict.fromkeys(name for group in self.groups for name in group))


SIMA_TALL = ("softmax-n256-d64-h8", "elu-n256-d64-h8-order_nn", "sima-n256-d64-h8-order_nn")
SIMA_WIDE = (
    "soft-n64-d256-h8-order_dd", "xca-n64-d256-h8", "elu-n64-d256-h8-order_dd",
    "sima-n64-d256-h8-order_dd",
)  # fmt: skip
EFFICIENTVIT = (
    *(f"efficientvit_m{size}" for size in range(6)), "efficientvit_m5_384", "efficientvit_m5_512",
)  # fmt: skip
ELEVIT = ("swiftformer_l3", "efficientformerv2_l", "efficientformerv2_l+elementwise", "elevit")
ELEVIT_2 = tuple(
    f"elevit{product}{focus}"
    for focus in ("", "_noff")
    for product in ("_qkdot_fvdot", "_qkdot", "_fvdot", "")
)
LAVIT = (
    ("deit_tiny", "pvt_tiny", "lavit_t"),
    ("deit_small", "deepvit_small", "pvt_small", "swin_tiny", "lavit_s"),
    ("swin_small", "pvt_medium", "lavit_b"),
)
PLAIN = ("vit", "vip", "vil", "vin", "fnet", "mixer")
MIXED = tuple(f"{host}{mixer}" for host in ("levi", "cc", "cv") for mixer in "tpln")
POOLED = ("pit", "pin", "pip")
ROTARY = ("rope_vit", "rope_vip", "rope_vil", "rope_vin")


def _vix(number: int, names: tuple[str, ...], data: str, hosts: Mapping[str, str]) -> Protocol:
    """A table of Vision Xformers; ``hosts`` has the softmax model that a mixer stands against."""
    claims = (Claim(f"{name}_{data}", f"{host}_{data}", "memory") for name, host in hosts.items())
    return Protocol(
        f"vix-table{number}", "vision-xformers", f"Table {number}",
        f"Vision Xformers, Table {number}: memory, size and time",
        (tuple(f"{name}_{data}" for name in names),), tuple(claims), batch=64, memory=True,
        stated="batch 64 and a 16 GB GPU are stated; that memory holds training as well, and the "
        "paper times nothing",
    )  # fmt: skip


def _hybrid(names: tuple[str, ...]) -> tuple[str, ...]:
    return names + tuple(f"hybrid_{name}" for name in names)


def _against_softmax(mixers: tuple[str, ...], host: str) -> dict[str, str]:
    return {
        name: host if name == mixer else f"hybrid_{host}"
        for mixer in mixers
        for name in (mixer, f"hybrid_{mixer}")
    }


PLAIN_HOSTS = _against_softmax(("vip", "vil", "vin"), "vit")
MIXED_HOSTS = {
    f"{host}{mixer}": f"{host}t" for host in ("levi", "cc", "cv") for mixer in "pln"
}  # fmt: skip

PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "sima-table3", "sima", "Table 3", "SimA, Table 3: attention blocks without projections",
            (SIMA_TALL, SIMA_WIDE),
            (
                Claim(SIMA_TALL[2], SIMA_TALL[0]), Claim(SIMA_TALL[2], SIMA_TALL[1]),
                *(Claim(SIMA_WIDE[3], other) for other in SIMA_WIDE[:3]),
            ),
            runs=1000,
            stated="1000 runs, H = 8, N and D are stated; batch, threads and runtime are not",
        ),
        Protocol(
            "efficientvit-table2", "efficientvit", "Table 2", "EfficientViT, Table 2: throughput",
            (EFFICIENTVIT,),
            tuple(Claim(*pair) for pair in pairwise(EFFICIENTVIT)),
            batch=16,
            stated="batch 16 and one thread on the CPU are stated; the number of runs is not",
        ),
        Protocol(
            "efficientvit-table3", "efficientvit", "Table 3", "EfficientViT, Table 3: throughput",
            (("deit_tiny", "swin_tiny", "efficientvit_m5"),),
            (Claim("efficientvit_m5", "deit_tiny"), Claim("efficientvit_m5", "swin_tiny")),
            batch=16,
            stated="batch 16 and one thread on the CPU are stated; the number of runs is not",
        ),
        Protocol(
            "elevit-table1", "elevit", "Table 1", "EleViT, Table 1: latency",
            (ELEVIT,),
            (*(Claim("elevit", other) for other in ELEVIT[:3]), Claim(ELEVIT[2], ELEVIT[1])),
            batch=128, stated="batch 128 on a GPU is stated; runs are not",
        ),
        Protocol(
            "elevit-table2", "elevit", "Table 2", "EleViT, Table 2: latency of the ablation",
            (ELEVIT_2,),
            tuple(
                Claim(f"elevit{focus}", f"elevit{product}{focus}")
                for focus in ("", "_noff")
                for product in ("_qkdot_fvdot", "_qkdot", "_fvdot")
            ),
            batch=128, stated="batch 128 on a GPU is stated; runs are not",
        ),
        Protocol(
            "lavit-table2", "lavit", "Table 2", "LaViT, Table 2: throughput",
            LAVIT,
            tuple(
                Claim(group[-1], other)
                for group, others in zip(
                    LAVIT, (("pvt_tiny",), ("pvt_small", "swin_tiny"), LAVIT[2][:2]), strict=True
                )
                for other in others
            ),
            stated="neither device, batch, threads nor runs are stated",
        ),
        _vix(1, _hybrid(PLAIN), "cifar10", PLAIN_HOSTS),
        _vix(2, _hybrid(PLAIN), "tinyimagenet", PLAIN_HOSTS),
        _vix(3, MIXED, "cifar10", MIXED_HOSTS),
        _vix(4, MIXED, "tinyimagenet", MIXED_HOSTS),
        _vix(5, _hybrid(POOLED), "cifar10", _against_softmax(POOLED[1:], "pit")),
        _vix(6, tuple(f"{h}{n}" for h in ("", "hybrid_") for n in ROTARY), "cifar10",
             _against_softmax(ROTARY[1:], "rope_vit")),
    )
}  # fmt: skip


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in PROTOCOLS:
        raise UnknownNameError("protocol", name, PROTOCOLS, listing="edgevit reproduce --list")
    return PROTOCOLS[name]
