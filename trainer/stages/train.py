"""A recipe's stages in order, resumable: data, training, export, report. Complete stages are not repeated.

Every stage writes its result atomically and is then recorded in OUT/stages.json. Training stages save their state while
they run; the others are short and start again after an interruption.
"""

import errno
import sys
from dataclasses import asdict

from fewstep.card import CheckpointError
from trainer.journal import Journal
from trainer.options import Order
from trainer.plan import describe
from trainer.recipes.by_name import RECIPES
from trainer.run.claim import claim
from trainer.stages.folder import check_place, check_planned_stages, complete_order, forget
from trainer.stages.pictures import pictures, prepare, read_data
from trainer.stages.planning import check_disk, make_plan, merge_plans, stored_plan
from trainer.stages.processes import check_processes
from trainer.stages.results import Export, command, ending, export_student, write_report
from trainer.stages.run import DATA, EXPORT, REPORT, names, names_from, open_run
from trainer.stages.training import is_complete, train_stage

INTERRUPTED = 130


def train(
    order: Order, default_budget_s: float, export: Export, began: float, first: str | None = None, dry_run: bool = False
) -> int:
    """Run all stages that are not complete. Returns the exit status. Training stages have order.processes processes.

    began: start time of the command by time.monotonic, because the budget covers the whole command. first: this stage
    and all that follow are repeated. dry_run: print the plan, write nothing.
    Raises CheckpointError, DataError, MachineError or OSError with a sentence; complete stages remain.
    """
    check_processes(order)
    if first:
        names_from(first, RECIPES[order.photos if order.names_recipe else "photos"])  # before any picture is read
    journal = Journal.read(order.out)
    check_place(order, journal)
    if dry_run:
        order = complete_order(order, journal, default_budget_s, first)
        read = DATA in journal.stages and first != DATA
        run = open_run(order, journal, read_data(journal) if read else pictures(order))
        print(describe(make_plan(run, run.recipe.stages, began), run.data, run.recipe), flush=True)
        return 0
    with claim(order.out):
        journal = Journal.read(order.out)
        before = dict(journal.order)
        order = complete_order(order, journal, default_budget_s, first)
        try:
            if journal.order != before:
                journal.write()  # the new place of the pictures
            return _train(order, journal, export, first, began)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise CheckpointError(
                f"the disk is full ({error}); make room, then go on from here with: {command(order)}"
            ) from error


def _train(order: Order, journal: Journal, export: Export, first: str | None, began: float) -> int:
    check_planned_stages(journal)
    if first == DATA and DATA in journal.stages:
        forget(journal, names(RECIPES[journal.plan["recipe"]]) if journal.plan else [DATA])
    if DATA not in journal.stages:
        prepare(order, journal)
    run = open_run(order, journal, read_data(journal))
    if first and first != DATA:
        forget(journal, names_from(first, run.recipe))
    missing = [stage for stage in run.recipe.stages if stage.name not in journal.stages]
    if not journal.plan or first in {stage.name for stage in run.recipe.stages}:
        made = make_plan(run, missing, began)
        journal.plan, journal.order = asdict(merge_plans(journal.plan, made)), order.facts()
        journal.write()
    planned = stored_plan(journal)
    check_disk(order.out, planned)
    print(describe(planned, run.data, run.recipe), flush=True)
    for stage in run.recipe.stages:
        if not is_complete(run, stage, planned) and not train_stage(run, stage, planned):
            print(f"interrupted in the stage {stage.name}; go on with: {command(order)}", file=sys.stderr)
            return INTERRUPTED
    if EXPORT not in journal.stages:
        export_student(run, export)
    if REPORT not in journal.stages:
        write_report(run, planned)
    print(ending(run, planned), flush=True)
    return 0
