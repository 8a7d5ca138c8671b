"""The files of a tuning: in the order of what they cost, each graph and each file once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from devices.profile import DeviceProfile
from edgevit.bundle import Bundle
from edgevit.errors import CheckError, UnavailableError
from edgevit.progress import Progress
from edgevit.source import Source, slug
from edgevit.tuning.space import COST, USUAL_COST, Candidate, pass_sets
from edgevit.tuning.state import LEAST_RACE_S, OUT, RACING, SAME, UNTRIED, WAITING, State, Trial
from edgevit.verbs.export import Graphs, Plan, export_source, make_plan, rewritten_graph

__all__ = ["Files"]

#: Share of the budget after which no export begins, and that a single one may take.
EXPORT_SHARE, ONE_SHARE = 0.5, 0.2


@dataclass
class Files:
    """What writes the candidates' files.

    Args:
        source: the model.
        profile: of the device that they are for.
        state: of the tuning; says what waits, and is told what became of it.
        seed: of the golden inputs.
        progress: told how far it is.
    """

    source: Source
    profile: DeviceProfile
    state: State
    seed: int
    progress: Progress
    graphs: Graphs = field(default_factory=Graphs)
    #: Seconds that the last rewriting took.
    graph_s: float = 0.0

    def bundle(self, trial: Trial) -> Bundle:
        """The bundle of a candidate whose file is made."""
        assert trial.bundle is not None
        return Bundle.open(self.state.folder / trial.bundle)

    def make(self) -> None:
        """Make the files of what waits, as long as the exports' share of the budget lasts.

        Raises:
            UnavailableError: there is nothing to race.
        """
        reasons = []
        state = self.state
        for trial in state.trials:
            if trial.status != WAITING:
                continue
            if any(t.bundle for t in state.trials) and (why := self._too_long(trial)):
                trial.leave(UNTRIED, why)
                continue
            with state.spending("exporting_s"):
                try:
                    self._make(trial)
                except (CheckError, UnavailableError) as error:
                    trial.leave(OUT, f"cannot be exported: {error}")
                    self.progress.note(f"{trial.label} is out: {error}")
            if trial.status == OUT:
                reasons.append(f"{trial.candidate.format}: {trial.reason}")
        if not self.state.racing:
            raise UnavailableError(
                f"{self.source.name} could not be exported: {'; '.join(reasons)}"
            )

    def _too_long(self, trial: Trial) -> str | None:
        """Why there is no time to make its file, if there is none."""
        state, seconds = self.state, self._estimate(trial)
        if self._shared(trial):
            return None
        if seconds > ONE_SHARE * state.budget_s:
            return f"to make it takes about {seconds:.0f} s, too much of {state.budget_s:.0f} s"
        late = state.exporting_s + seconds > EXPORT_SHARE * state.budget_s
        if late or state.left_s < 2 * LEAST_RACE_S:
            return "the exports' share of the budget would be exceeded"
        return None

    def _shared(self, trial: Trial) -> Trial | None:
        """One whose file this one has as well: they differ in settings alone."""
        own = trial.candidate
        for other in self.state.trials:
            c = other.candidate
            alike = (c.format, c.passes, c.options) == (own.format, own.passes, own.options)
            if alike and other.bundle and other is not trial:
                return other
        return None

    def _estimate(self, trial: Trial) -> float:
        """Seconds that an export will take, from those before."""
        name, key = trial.candidate.format, tuple(self.plan(trial.candidate).rewrites())
        graph = 0.0 if key in self.graphs.rewritten else self.graph_s
        known = {t.candidate.format: t.export_s for t in self.state.trials if t.export_s}
        if name in known or not known:
            return graph + known.get(name, 0.0)
        unit = min(seconds / COST.get(f, USUAL_COST) for f, seconds in known.items())
        return graph + unit * COST.get(name, USUAL_COST)

    def plan(self, candidate: Candidate) -> Plan:
        """The export that makes its file.

        Raises:
            OptionError: the device cannot load what its options make.
        """
        return make_plan(
            [candidate.format],
            passes=pass_sets()[candidate.passes],
            options={candidate.format: candidate.options},
            device=self.profile,
        )

    def _make(self, trial: Trial) -> None:
        candidate = trial.candidate
        if (shared := self._shared(trial)) is not None:
            trial.bundle, trial.file_sha256 = shared.bundle, shared.file_sha256
        else:
            plan, captured = self.plan(candidate), self.graphs.captured is not None
            with self.progress.stage(f"export {candidate.format} {candidate.passes}"):
                quiet, start = Progress(), time.monotonic()
                rewritten_graph(self.source, plan, self.graphs, seed=self.seed, progress=quiet)
                if (same := self._same_graph(trial)) is not None:
                    trial.leave(SAME, f"the passes make the same graph as in {same.label}")
                    return
                if captured and time.monotonic() - start > 0.01:
                    self.graph_s = time.monotonic() - start
                place = self.state.folder / "files" / slug(candidate.label)
                start = time.monotonic()
                bundle = export_source(
                    self.source, plan, place, seed=self.seed, progress=quiet, graphs=self.graphs
                )
            trial.export_s = time.monotonic() - start
            trial.bundle = str(bundle.path.relative_to(self.state.folder))
            artifact = bundle.artifact(candidate.format)
            trial.file_sha256 = bundle.manifest["files"][artifact["file"]]["sha256"]
        trial.status = RACING
        self._drop_same_file(trial)

    def _same_graph(self, trial: Trial) -> Trial | None:
        """An earlier one of the same format whose passes make the very same graph."""
        own, prints = trial.candidate, self._fingerprints()
        for other in self.state.trials:
            c = other.candidate
            if other is trial or not other.bundle or c.settings or c.threads != own.threads:
                continue
            alike = (c.format, c.options) == (own.format, own.options)
            if alike and prints.get(c.passes, c.passes) == prints.get(own.passes):
                return other
        return None

    def _fingerprints(self) -> dict[str, str]:
        """Of the graphs that are there, by the set of passes."""
        by_passes = {
            key: graph.program.fingerprint() for key, graph in self.graphs.rewritten.items()
        }
        plans = {name: make_plan(["onnx"], passes=names) for name, names in pass_sets().items()}
        keys = {name: tuple(plan.rewrites()) for name, plan in plans.items()}
        return {name: by_passes[key] for name, key in keys.items() if key in by_passes}

    def _drop_same_file(self, trial: Trial) -> None:
        own = trial.candidate
        for other in self.state.trials:
            c = other.candidate
            if other is trial or other.status != RACING or other.file_sha256 != trial.file_sha256:
                continue
            if (c.settings, c.threads) == (own.settings, own.threads):
                trial.leave(SAME, f"the same file as {other.label}")
