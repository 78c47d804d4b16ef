"""One function for each stage of the segmentation; the only top-level module that unpacks a config."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from brats_seg.bank.bank import PatchBank
from brats_seg.bank.build import BuildOptions, BuildReport, build_bank
from brats_seg.bank.listing import hold_bank
from brats_seg.core.config import Config
from brats_seg.core.dask_engine import Cluster
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import BEST, LAST, lock, write_text
from brats_seg.core.runtime import Precision, gather_from_ranks, n_workers, ranks, start_runtime
from brats_seg.inference.loaded import load_for_prediction, load_segmenters, unused_tuning
from brats_seg.inference.options import Objective, PredictOptions, Tuning, write_tuning
from brats_seg.inference.outcome import PredictReport
from brats_seg.inference.predict import predict_cases, predict_one
from brats_seg.inference.remote import OnCluster
from brats_seg.inference.windowed import needs_windows
from brats_seg.models.checkpoint import save_checkpoint
from brats_seg.models.networks import check_patch_size
from brats_seg.models.packaged import is_packaged, write_cards
from brats_seg.models.restore import restore_network
from brats_seg.models.trained import (
    compose_checkpoints,
    held_out_by_all,
    initial_checkpoint,
    open_network,
    open_run,
)
from brats_seg.scans.case import MODALITIES, Problem, case_of_files
from brats_seg.scans.layouts import Found, find_cases, problems_of
from brats_seg.scans.verify import Report, verify_folder
from brats_seg.training.phases import Method
from brats_seg.training.split import RunResult, make_split
from brats_seg.training.train import train as train_network
from brats_seg.training.tuning import STRENGTHS, SeenCase, search, see_cases
from brats_seg.training.validation import check_metric


def verify_scans(
    data: str | Path,
    *,
    workers: int = 0,
    cluster: Cluster | None = None,
    synthetic: bool = False,
    schema: str | None = None,
) -> Report:
    """All problems of a data set at once."""
    return verify_folder(
        data, workers=n_workers(workers), cluster=cluster, synthetic=synthetic, schema=schema
    )


def preprocess(
    data: str | Path,
    bank: str | Path,
    *,
    options: BuildOptions = BuildOptions(),
    workers: int = 0,
    cluster: Cluster | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> BuildReport:
    """Make a bank of every good case, or continue an unfinished bank."""
    return build_bank(
        Path(data), Path(bank), options=options, workers=n_workers(workers), cluster=cluster, say=say
    )


def train(
    bank: str | Path,
    run: str | Path,
    config: Config,
    *,
    fold: int | None,
    resume: bool = False,
    initial: str | Path | None = None,
    looks: Sequence[int] = (),
    device: str = "auto",
) -> RunResult:
    """Train on the cases outside a fold; the fold itself is never opened. Without a fold every case is used
    for training and none for validation.

    Args:
        bank: to train on.
        run: folder to write.
        config: all settings.
        fold: to hold out, from 0; None for none.
        resume: continue an interrupted run.
        initial: a run, a packaged network or a checkpoint file; training starts with its weights.
        looks: epochs after which the weights for prediction are kept.
        device: of the training.

    Raises:
        UsageError: a fold that the bank does not have, settings that do not match, or an `initial` that does
            not exist.
        InputError: an unusable bank or run folder, or an `initial` of other modalities than the bank's.
    """
    knobs = config.training
    runtime = start_runtime(
        device=device,
        precision=knobs.precision,
        threads=knobs.threads,
        compile=knobs.compile,
        cudnn_benchmark=knobs.cudnn_benchmark,
    )
    bank, run = Path(bank), Path(run)
    begun_with, config = initial_checkpoint(initial, config)
    with hold_bank(bank):
        opened = open_bank(bank, config)
        if begun_with is not None and tuple(begun_with.modalities) != tuple(opened.modalities):
            theirs, ours = ", ".join(begun_with.modalities), ", ".join(opened.modalities)
            raise InputError(
                f"--from {initial}: trained on the modalities {theirs}; the bank has {ours}; both need the "
                "same order"
            )
        return train_network(
            run,
            bank=opened.to(runtime.device),
            split=make_split(opened, fold=fold, validation=config.validation, seed=config.training.seed),
            config=config,
            runtime=runtime,
            resume=resume,
            initial=begun_with,
            looks=looks,
        )


def open_bank(bank: str | Path, config: Config) -> PatchBank:
    """The bank with the patches of a config. Raises as `PatchBank` does."""
    return PatchBank(Path(bank), patch_size=config.patch.size, slices_around=config.patch.slices_around)


def check_fit(bank: PatchBank, config: Config) -> None:
    """Raise `UsageError` if a config cannot train on a bank. This check opens no case, and runs before hours
    of other work.
    """
    grouped, training = bank.regroup(config.task.classes), config.training
    check_patch_size(
        config.network,
        patch_size=config.patch.size,
        n_together=training.batch_size // training.accumulate,
        jitter=config.sampler.jitter,
    )
    check_metric(config.validation.metric, of=config.validation.of, classes=grouped.classes)
    Method(
        config=config,
        index=grouped.index,
        runtime=start_runtime(device="cpu", precision="float32"),
    ).check()


def compose(detector: str | Path, classifier: str | Path, run: str | Path) -> Path:
    """Make one run of two trained stages: `RUN/checkpoint_best.pt` and `config.yaml`, used as those of any
    run. Returns the checkpoint.

    Raises:
        UsageError: runs that are not stages or do not match each other, or a used folder.
        InputError: no checkpoint, a damaged one, or stages of different banks or folds.
    """
    run = Path(run)
    first, second = (open_network(Path(stage) / BEST) for stage in (detector, classifier))
    composed = compose_checkpoints(first, second)
    network = restore_network(composed, run / BEST, runtime=start_runtime(device="cpu", precision="float32"))
    sizes = [stage.config.patch.size for stage in (first, second)]
    if sizes[0] != sizes[1] and needs_windows(network):
        raise UsageError(
            f"{second.path}: has patch.size {list(sizes[1])}, {first.path} {list(sizes[0])}; these networks "
            "need windows of one size"
        )
    run.mkdir(parents=True, exist_ok=True)
    with lock(run / ".lock"):
        if any((run / name).exists() for name in (BEST, LAST)):
            raise UsageError(f"{run} contains a run already; give another folder")
        write_text(
            run / "config.yaml",
            f"# A cascade of {detector} and {classifier}, composed by `brats-seg "
            f"cascade`.\n{composed.config}",
        )
        save_checkpoint(run / BEST, composed)
    return run / BEST


def predict(
    run: str | Path,
    scans: str | Path,
    out: str | Path,
    *,
    options: PredictOptions = PredictOptions(),
    cluster: Cluster | None = None,
) -> PredictReport:
    """Segment a folder of scans with one run, or with the mean of several; on a cluster, if one is given.

    `run` is a run folder, or the name of a packaged network. Under torchrun each process segments its share
    of the cases, and each returns the results of all.

    Raises:
        UsageError: `part` or a cluster is given under torchrun.
    """
    rank, n_ranks = ranks()
    if n_ranks > 1:
        if cluster is not None or options.part != (1, 1):
            raise UsageError("torchrun shares the cases among its processes: leave out --part and --cluster")
        options = replace(options, part=(rank + 1, n_ranks))
    scans, out = Path(scans), Path(out)
    runs = tuple(map(open_run, (run, *options.also)))
    notes = [unused_tuning(runs[0], options), *(one.unfinished() for one in runs)]
    elsewhere = None
    if cluster is not None:
        named = [(name, one.digest) for name, one in zip((run, *options.also), runs, strict=True)]
        elsewhere = OnCluster(cluster, runs=named, options=options, out=out)
        options = replace(options, device="cpu", precision="auto")  # the workers use the networks
    segmenters, options = load_for_prediction(runs, options)
    needed = () if options.allow_missing else segmenters[0].modalities
    found_cases = find_cases(scans, synthetic=options.synthetic, required=needed, labels="unused")
    if options.held_out:
        found_cases = _only(found_cases, held_out_by_all(runs), scans)
    write_cards(out, [one.folder for one in runs])
    first, step = options.part
    report = predict_cases(
        segmenters,
        found_cases.cases[first - 1 :: step],
        out=out,
        options=options,
        problems=(*(note for note in notes if note), *found_cases.problems) if first == 1 else (),
        elsewhere=elsewhere,
    )
    return report if n_ranks == 1 else PredictReport.of_all(gather_from_ranks(report))


def tune(
    run: str | Path,
    bank: str | Path,
    *,
    also: Sequence[str | Path] = (),
    objective: Objective = "dice",
    device: str = "auto",
    precision: Precision = "auto",
    cleanup: bool = True,
    threads: int = 0,
) -> tuple[Tuning, ...]:
    """Find the strength of prior correction, region thresholds and clean-up thresholds on inner cases, and
    write `RUN/tuned.yaml`.

    With `also` the inner cases of several runs are pooled, each segmented by the network of its own run. The
    settings of a run are found without the patients that this run held out (they may be inner cases of the
    other runs), so that held-out cases stay unseen.

    No other case of the bank is opened. Strengths are tried if every run has a prior to correct
    (`loss.kind`); without `cleanup` only strengths are tried.

    Returns:
        The settings found for each run, in order.

    Raises:
        UsageError: a run given twice, or runs of different classes.
        InputError: a run without inner cases, or a bank that a run was not trained on.
    """
    folders, bank = tuple(map(Path, (run, *also))), Path(bank)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("--also: a run is given twice; each run counts once")
    for folder in folders:
        if is_packaged(folder):
            raise UsageError(f"{folder}: is a packaged network; tune the run that it was made from")
    runs = [open_run(folder) for folder in folders]
    networks = [network for one in runs for network in one.networks]
    for folder, network in zip(folders, networks, strict=True):
        if not network.checkpoint.inner_cases:
            raise InputError(
                f"{folder}: was trained on every case (--fold all); without inner cases there is nothing to "
                "tune on"
            )
    strengths = STRENGTHS if all(network.has_prior for network in networks) else (0.0,)
    cases: list[SeenCase] = []
    with hold_bank(bank):
        segmenters = load_segmenters(
            runs, runtime=start_runtime(device=device, precision=precision, threads=threads)
        )
        for number, (network, segmenter) in enumerate(zip(networks, segmenters, strict=True)):
            checkpoint, opened = network.checkpoint, open_bank(bank, network.config)
            if opened.digest != checkpoint.bank:
                raise InputError(
                    f"{bank}: has the digest {opened.digest[:12]}; {folders[number]} was trained on the bank "
                    f"with {checkpoint.bank[:12]}"
                )
            shifts = {s: network.class_shift(s) for s in strengths}
            cases += see_cases(segmenter, opened.select(checkpoint.inner_cases), shifts=shifts, run=number)
        patient_of = {case.id: case.patient for case in opened.cases}
    tunings = []
    for folder, network in zip(folders, networks, strict=True):
        unseen = {patient_of[case] for case in network.checkpoint.held_out_cases}
        settings, found = search(
            [case for case in cases if case.patient not in unseen], objective=objective, cleanup=cleanup
        )
        tunings.append(
            Tuning(**asdict(settings), epoch=network.checkpoint.epoch, checkpoint=network.digest, **found)
        )
        write_tuning(folder, tunings[-1])
    return tuple(tunings)


def predict_files(
    run: str | Path,
    out: str | Path,
    files: Mapping[str, str | Path],
    *,
    options: PredictOptions = PredictOptions(),
    overwrite: bool = False,
) -> PredictReport:
    """Segment one case from named files, at most one for each modality, and write the label map `out`.

    Raises:
        UsageError: no file, or a missing modality for a network that was not trained for this; or `out`
            exists and `overwrite` is not set.
    """
    n_processes = ranks()[1]
    if n_processes > 1:
        raise UsageError(
            f"torchrun: each of its {n_processes} processes would segment this case; start predict-case "
            "without torchrun"
        )
    if not files or (len(files) < len(MODALITIES) and not options.allow_missing):
        missing = ", ".join(f"--{name}" for name in MODALITIES if name not in files)
        raise UsageError(
            f"predict-case: needs {missing}; --allow-missing accepts a case with one modality or more"
        )
    runs, out = tuple(map(open_run, (run, *options.also))), Path(out)
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: exists already; give another name, or --overwrite")
    segmenters, options = load_for_prediction(runs, options)
    case = case_of_files({name: Path(file) for name, file in files.items()}, id=out.name.partition(".")[0])
    return predict_one(segmenters, case, out=out, options=options)


def held_out_cases(run: str | Path) -> tuple[str, ...]:
    """Ids of the cases that a run held out. Raises `InputError` if there is none."""
    return open_run(run).held_out_cases


def _only(found: Found, ids: Sequence[str], scans: Path) -> Found:
    known_ids = {case.id for case in found.cases} | {problem.case for problem in found.problems}
    absent = [
        Problem(
            "error",
            name,
            str(scans),
            "is held out by the run and missing",
            "the scans that the bank was made from",
        )
        for name in ids
        if name not in known_ids
    ]
    cases = tuple(case for case in found.cases if case.id in ids)
    return Found(cases, (*problems_of(ids, cases, found.problems), *absent))
