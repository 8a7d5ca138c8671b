"""The workflow that measures on hosted runners and boards, and keeps a page's tables true.

    measure (one job a machine)   export, verify, bench, upload the results
    count (Linux, each processor) instructions of a small set, which no other work disturbs
    tables                        join them, write the tables, compare with the last ones, comment

No step has an expression in its shell: values come by ``env``, so that each can be run as it
stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["HOSTED", "Machine", "Plan", "workflow"]


@dataclass(frozen=True)
class Machine:
    """A machine that measures.

    Args:
        name: of its table.
        runner: labels of the runner, as YAML takes them.
        formats: that it runs, separated by commas.
    """

    name: str
    runner: str
    formats: str


HOSTED = (
    Machine("linux-x64", "ubuntu-24.04", "onnx"),
    Machine("linux-arm64", "ubuntu-24.04-arm", "onnx"),
    # Core ML runs nowhere else: here it verifies itself and is timed.
    Machine("macos-arm64", "macos-15", "onnx,coreml"),
)


@dataclass(frozen=True)
class Plan:
    """What a workflow is made from.

    Args:
        models: to be exported and benched.
        page: Markdown file that holds the tables.
        install: arguments of ``pip install``.
        boards: labels of self-hosted runners, each a machine of its own.
        fail_over: by how much instructions may grow.
        command: that writes it, told at its head.
    """

    models: Sequence[str] = ("efficientvit_m0", "elevit")
    page: str = "docs/latency.md"
    install: str = "edgevit[onnx,coreml]"
    boards: Sequence[str] = ()
    fail_over: str = "2%"
    command: str = "edgevit ci init"

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Hosted ones, then boards."""
        boards = (Machine(b, f"[self-hosted, {b}]", "onnx") for b in self.boards)
        return (*HOSTED, *boards)


def workflow(plan: Plan) -> str:
    """The workflow as YAML."""
    machines = "\n".join(
        f'          - {{name: {m.name}, runner: {_runner(m.runner)}, formats: "{m.formats}"}}'
        for m in plan.machines
    )
    filled = {
        "MACHINES": machines,
        "MODELS": " ".join(plan.models),
        "PAGE": plan.page,
        "INSTALL": plan.install,
        "FAIL_OVER": plan.fail_over,
        "COMMAND": plan.command,
    }
    text = TEMPLATE
    for key, value in filled.items():
        text = text.replace(f"@{key}@", value)
    return text


def _runner(runner: str) -> str:
    return runner if runner.startswith("[") else f'"{runner}"'


TEMPLATE = """\
# Written by `@COMMAND@`. Add a board of your own with --board LABEL.
name: latency
on:
  workflow_dispatch:
  schedule:
    - cron: "17 3 * * 1"
  pull_request:

permissions:
  contents: read

env:
  MODELS: "@MODELS@"
  PAGE: "@PAGE@"
  INSTALL: "@INSTALL@"
  FAIL_OVER: "@FAIL_OVER@"
  OMP_NUM_THREADS: "1"

jobs:
  measure:
    # A board runs what it is given: nothing from a fork.
    if: >-
      github.event_name != 'pull_request' ||
      github.event.pull_request.head.repo.full_name == github.repository
    name: ${{ matrix.name }}
    runs-on: ${{ matrix.runner }}
    timeout-minutes: 60
    strategy:
      fail-fast: false
      matrix:
        include:
@MACHINES@
    env:
      NAME: ${{ matrix.name }}
      FORMATS: ${{ matrix.formats }}
    defaults:
      run:
        shell: bash
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - name: Install
        run: |
          set -f  # brackets of extras are no pattern
          python -m pip install $INSTALL
      - name: Export
        run: |
          for model in $MODELS; do
            edgevit export "$model" --format "$FORMATS" --output exports
          done
      - name: Verify
        run: |
          for bundle in exports/*/; do
            edgevit verify "$bundle"
          done
      - name: Bench
        run: edgevit bench exports/*/ --format "$FORMATS" --output "results/$NAME"
      - name: Table
        run: edgevit table "results/$NAME" --include all --format md >> "$GITHUB_STEP_SUMMARY"
      - uses: actions/upload-artifact@v4
        if: always()
        with:
          name: results-${{ matrix.name }}
          path: results/
          if-no-files-found: ignore

  count:
    name: count on ${{ matrix.name }}
    runs-on: ${{ matrix.runner }}
    timeout-minutes: 60
    strategy:
      fail-fast: false
      matrix:
        include:
          - {name: linux-x64, runner: "ubuntu-24.04"}
          - {name: linux-arm64, runner: "ubuntu-24.04-arm"}
    env:
      NAME: ${{ matrix.name }}
    defaults:
      run:
        shell: bash
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - name: Install
        run: |
          sudo apt-get update -qq
          sudo apt-get install -qq -y --no-install-recommends valgrind
          set -f
          python -m pip install $INSTALL
      - name: Count
        run: |
          edgevit count $MODELS --image-size 64 --num-classes 10 \\
            --output "counts/instructions-$NAME"
      - uses: actions/upload-artifact@v4
        with:
          name: counts-${{ matrix.name }}
          path: counts/

  tables:
    needs: [measure, count]
    if: ${{ !cancelled() && needs.count.result == 'success' }}
    runs-on: ubuntu-24.04
    timeout-minutes: 20
    permissions:
      actions: read
      contents: write
      pull-requests: write
    env:
      GH_TOKEN: ${{ github.token }}
      GH_REPO: ${{ github.repository }}
      BRANCH: ${{ github.event.repository.default_branch }}
      PULL_REQUEST: ${{ github.event.pull_request.number }}
    defaults:
      run:
        shell: bash
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - name: Install
        run: |
          set -f
          python -m pip install $INSTALL
      - uses: actions/download-artifact@v4
        with:
          path: now/
          merge-multiple: true
      - name: Last results
        run: |
          run=$(gh run list --workflow latency.yml --branch "$BRANCH" --status success --limit 1 \\
            --json databaseId --jq '.[0].databaseId // empty')
          mkdir -p last
          if [ -n "$run" ]; then
            gh run download "$run" --dir fetched || echo "the last results are gone"
            for folder in fetched/*/; do
              [ -d "$folder" ] && cp -r "$folder". last/
            done
          fi
      - name: Tables
        run: |
          folders=$(find now -mindepth 1 -maxdepth 1 -type d ! -name 'instructions-*' | sort)
          edgevit ci tables "$PAGE" $folders
      - name: Compare
        run: edgevit ci comment last now --fail-over "$FAIL_OVER" --output comment.md
      - name: Comment
        if: always() && github.event_name == 'pull_request'
        run: gh pr comment "$PULL_REQUEST" --body-file comment.md
      - uses: actions/upload-artifact@v4
        if: always()
        with:
          name: page
          path: |
            ${{ env.PAGE }}
            comment.md
      - name: Keep the page
        if: github.event_name != 'pull_request'
        run: |
          git config user.name "github-actions[bot]"
          git config user.email "41898282+github-actions[bot]@users.noreply.github.com"
          git add "$PAGE"
          git diff --cached --quiet || git commit -m "Latency tables as measured on $(date -u +%F)"
          git push
"""
