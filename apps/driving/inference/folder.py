"""``trivium predict driving FOLDER --each``: every frame of a data set's folder, logs, sweeps or a ROS bag.

While the network computes a frame, the next frames are read and the boxes of the previous one are decoded (see
``video``); only a few frames are in memory at a time. Each frame's result files are written when the frame is done, and
then its line of ``frames.jsonl``. Running the same command again continues after an interruption. Frames that cannot
be read are reported and left out, and the next run tries them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from apps.driving.adapters import argoverse2, cityscapes3d, custom, kitti, rosbag
from apps.driving.adapters import nuscenes as nuscenes_adapter
from apps.driving.adapters.kitti_layouts import frame_root, frame_roots, layout_of
from apps.driving.adapters.nuscenes_tables import MAX_SWEEPS
from apps.driving.datasets.nuscenes import NuScenes
from apps.driving.inference.detect import LidarDetector
from apps.driving.inference.video import overlapped
from apps.driving.outputs import cityscapes3d as cityscapes3d_results
from apps.driving.outputs import kitti as kitti_results
from apps.driving.outputs import nuscenes
from apps.driving.outputs.result import frame_line
from shared.atomic_files import file_lock, write_whole
from shared.errors import InvalidInputError
from shared.threads import compute_threads_divided

if TYPE_CHECKING:
    from apps.driving.predictor import Computed, DrivingPredictor, Options, Prepared
    from apps.driving.schemas import DrivingFrame
    from apps.driving.types import Frame

_LIDAR_ONLY = {"lidar": True, "camera": False}
_CAMERA_ONLY = {"lidar": False, "camera": True}
_BOTH = {"lidar": True, "camera": True}
_SAMPLE_JSON = "sample.json"
_SETTINGS, _LINES, _LOCK = "settings.json", "frames.jsonl", ".lock"
_REPORT_INTERVAL_FRAMES = 100


def predict_folder(
    predictor: DrivingPredictor, folder: Path, out: Path, options: Options, report: Callable[[str], object]
) -> int:
    """Detects objects in every frame of ``folder``, or of a ROS bag, that has no result in ``out`` yet.

    Returns the number of frames that could not be read. Calls ``report`` with lines about the progress. Raises
    ``InvalidInputError`` if there is nothing to read, or if ``out`` holds results of another folder, or of other
    weights or options.
    """
    if rosbag.bag_files([folder]):
        source = _frames_in_bag(folder, options.topic)
    elif versions := sorted(
        table.parent for prefix in ("", "v1.0-*/") for table in folder.glob(f"{prefix}sample_data.json")
    ):
        source = _frames_in_nuscenes(versions, images=predictor.uses_camera(options.model))
    elif (info := folder if folder.name == _SAMPLE_JSON else folder / _SAMPLE_JSON).is_file():
        source = _frames_in_sample_json(info, images=predictor.uses_camera(options.model))
    elif logs := _log_folders(folder):
        source = _frames_in_logs(folder, logs, images=predictor.uses_camera(options.model))
    elif cities := cityscapes3d.images_below(folder):
        source = _frames_in_cityscapes(folder, cities)
    else:
        source = _frames_in_folder(folder, predictor.device)
    if options.topic and source.topic is None:
        raise InvalidInputError(f"the option topic is only for ROS bags, and {folder.name} is not one; omit it")
    settings = {
        "weights": predictor.digests,
        "model": options.model,
        "score": predictor.least_scores if options.score is None else options.score,
        "folder": str(source.root.resolve()),
    } | ({} if source.topic is None else {"topic": source.topic})
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"cannot create {out}: {error.strerror}; choose another directory with --out"
        ) from error
    try:
        with file_lock(out / _LOCK, wait=False):
            _check_settings(out / _SETTINGS, settings)
            model = options.model or predictor.preferred_model(source.sensors)
            with _divided_threads(predictor, model):
                if model in predictor.detectors:
                    predictor.open_programs(model)  # timed to choose the fastest, so nothing else may run
                return _predict_frames(predictor, source, out, options, report)
    except BlockingIOError as error:
        raise InvalidInputError(
            f"another process is writing to {out}; wait until it ends, or choose another directory with --out"
        ) from error


class _PendingFrame(NamedTuple):
    """A frame that is not read yet: its name, and the function that reads it."""

    name: str
    read: Callable[[], Frame]


class _FrameSource(NamedTuple):
    """Frames to read one after the other, their expected number, and their names if these are known in advance.

    ``sensors`` says which sensors they have data of, as ``preferred_model`` takes it; ``posed`` whether their poses in
    the global frame are known.
    """

    root: Path
    frames: Iterable[_PendingFrame]
    total: int
    names: set[str] | None = None
    topic: str | None = None
    posed: bool = False
    sensors: Mapping[str, bool] = _LIDAR_ONLY


def _frames_in_folder(folder: Path, device: str) -> _FrameSource:
    custom_roots = custom.folders([folder])
    if len(custom_roots) > 1:
        raise InvalidInputError(
            f"{folder.name} contains {len(custom_roots)} folders {custom.POINTS}; give the parent folder of one of them"
        )
    if not folder.is_dir():
        raise InvalidInputError(f"--each takes a folder or a ROS bag, and {folder.name} is neither; omit --each")
    if not custom_roots and not frame_roots(folder):
        return _loose_sweeps(folder)
    root = custom_roots[0] if custom_roots else frame_root(folder)
    ids = custom.frame_ids(root) if custom_roots else kitti.frame_ids(root)
    read = partial(custom.read_frame if custom_roots else kitti.read_frame, root, labelled=False, device=device)
    frames = [_PendingFrame(frame_id.replace("/", "_"), partial(read, frame_id)) for frame_id in ids]
    sensors = _LIDAR_ONLY
    if not custom_roots:
        layout = layout_of(root)
        sensors = {"lidar": layout.sweeps.is_dir(), "camera": layout.images.is_dir()}
    return _FrameSource(root, frames, len(frames), {frame.name for frame in frames}, sensors=sensors)


def _loose_sweeps(folder: Path) -> _FrameSource:
    """The sweep files directly in a folder."""
    ids = custom.sweep_ids(folder)
    if not ids:
        raise InvalidInputError(
            f"{folder.name} contains nothing that --each reads: sweeps (.bin, .pcd, .npy), a folder velodyne, image_2 "
            "or points, nuScenes' tables, a sample.json, Argoverse 2 logs, or Cityscapes images"
        )
    frames = [_PendingFrame(frame_id, partial(custom.read_unlabelled, folder, frame_id)) for frame_id in ids]
    return _FrameSource(folder, frames, len(frames), set(ids))


def _frames_in_bag(path: Path, topic: str | None) -> _FrameSource:
    bag = rosbag.open_bag([path], topic)

    def frames() -> Iterator[_PendingFrame]:
        try:
            for sweep in bag.sweeps():
                yield _PendingFrame(sweep.name, sweep.read)
        except InvalidInputError as error:
            yield _PendingFrame("", partial(_raise, error))

    return _FrameSource(path, frames(), bag.count, topic=bag.topic)


def _frames_in_nuscenes(versions: list[Path], *, images: bool) -> _FrameSource:
    """``versions`` are the folders of tables that were found."""
    if len(versions) > 1:
        names = ", ".join(version.name for version in versions)
        raise InvalidInputError(f"{versions[0].parent.name} contains {names}; give one of these folders")
    data_set = NuScenes(root=versions[0].parent, version=versions[0].name).all_frames()
    frames = [
        _PendingFrame(name, partial(data_set.read, number, images=images)) for number, name in enumerate(data_set.names)
    ]
    return _FrameSource(versions[0], frames, len(frames), set(data_set.names), posed=True, sensors=_BOTH)


def _frames_in_sample_json(info: Path, *, images: bool) -> _FrameSource:
    """The key frames of a ``sample.json``."""
    key_frames = nuscenes_adapter.describe(info)
    earlier = lru_cache(MAX_SWEEPS + 1)(nuscenes_adapter.read_points)  # consecutive frames share sweeps
    read = partial(key_frames.read, labelled=False, earlier=earlier)
    frames = [
        _PendingFrame(
            nuscenes_adapter.frame_name(sample),
            # Images are always read if there is no sweep.
            partial(read, sample, images=images or not sample.get("lidar_points")),
        )
        for sample in key_frames.samples
    ]
    sensors = {
        "lidar": any(sample.get("lidar_points") for sample in key_frames.samples),
        "camera": any(sample["images"] for sample in key_frames.samples),
    }
    posed = any("ego2global" in sample for sample in key_frames.samples)
    return _FrameSource(info, frames, len(frames), {frame.name for frame in frames}, posed=posed, sensors=sensors)


def _log_folders(folder: Path) -> list[Path]:
    """The folder itself if it is an Argoverse 2 log, else the logs in it or in its splits."""
    if argoverse2.is_log(folder):
        return [folder]
    return sorted(
        lidar_folder.parents[1] for depth in ("*", "*/*") for lidar_folder in folder.glob(f"{depth}/sensors/lidar")
    )


def _frames_in_logs(folder: Path, logs: list[Path], *, images: bool) -> _FrameSource:
    """The sweeps of all logs in order. If there are several logs, a frame's name starts with its log's."""

    def read(log: Path, timestamp: int, name: str) -> Frame:
        return replace(argoverse2.read_frame(log, timestamp, images=images, labelled=False), name=name)

    frames = []
    for log in logs:
        for timestamp in argoverse2.timestamps(log):
            name = str(timestamp) if len(logs) == 1 else f"{log.name}_{timestamp}"
            frames.append(_PendingFrame(name, partial(read, log, timestamp, name)))
    if not frames:
        raise InvalidInputError(f"{folder.name} contains no Argoverse 2 sweep (sensors/lidar/TIMESTAMP.feather)")
    return _FrameSource(folder, frames, len(frames), {frame.name for frame in frames}, sensors=_BOTH)


def _frames_in_cityscapes(folder: Path, images: list[Path]) -> _FrameSource:
    def read(image: Path) -> Frame:
        return cityscapes3d.read_unlabelled(image, cityscapes3d.calibration_of(image))

    frames = [_PendingFrame(image.name.removesuffix(cityscapes3d.IMAGE), partial(read, image)) for image in images]
    return _FrameSource(folder, frames, len(frames), {frame.name for frame in frames}, sensors=_CAMERA_ONLY)


def _raise(error: InvalidInputError) -> Frame:
    """Stands for the frames of a bag after the point where it is damaged."""
    raise error


def _divided_threads(predictor: DrivingPredictor, model: str | None) -> AbstractContextManager[None]:
    """On a CPU, half of the threads for the network and half for the second stage, which takes about as long.

    Neither then waits for threads of the other. With two threads for each, on two cores that other processes used too,
    a sweep took two to three times as much CPU time.
    """
    detector = predictor.detectors.get(model or "")
    has_second_stage = isinstance(detector, LidarDetector) and detector.second_stage is not None
    return compute_threads_divided(2) if has_second_stage and predictor.device == "cpu" else nullcontext()


def _predict_frames(
    predictor: DrivingPredictor, source: _FrameSource, out: Path, options: Options, report: Callable[[str], object]
) -> int:
    done = _completed_frames(out / _LINES)
    done_before = len(done) if source.names is None else len(done & source.names)
    report(f"{source.root}: {source.total} frames, {done_before} of them already done")
    failed, frames_with_remarks, result_file_note, last_name = 0, 0, "", "none"

    def read(frame: _PendingFrame) -> Prepared:
        return predictor.prepare(frame.read(), options)

    def finish(computed: Computed) -> tuple[DrivingFrame, dict[str, str]]:
        """The frame's line of JSON, and its result files by name if it has a camera."""
        frame, output = computed.prepared.frame, predictor.finish(computed, options)
        files = {}
        if frame.cameras:
            files[f"{frame.name}.txt"] = kitti_results.write(output.boxes, next(iter(frame.cameras.values())))
        if (name := cityscapes3d_results.file_name(frame)) is not None:
            files[f"{cityscapes3d_results.FOLDER}/{name}"] = cityscapes3d_results.write(output.boxes, frame)
        return frame_line(frame, output), files

    remaining = (frame for frame in source.frames if frame.name not in done)
    results = overlapped(remaining, read, predictor.compute, finish, device=predictor.device)
    with (out / _LINES).open("a", encoding="utf-8") as lines, closing(results):
        try:
            for number, (frame, future) in enumerate(results, 1):
                try:
                    line, files = future.result()
                except InvalidInputError as error:
                    failed += 1
                    report(f"left out: {error}")
                    continue
                for name, text in files.items():
                    (out / name).parent.mkdir(exist_ok=True)
                    write_whole(out / name, text)
                    result_file_note = " and a result file for each frame with a camera"
                lines.write(json.dumps(line, allow_nan=False) + "\n")
                lines.flush()
                last_name = frame.name
                if "remarks" in line:
                    frames_with_remarks += 1
                    if frames_with_remarks == 1:
                        report(f"{frame.name}: {line['remarks'][0]}")
                if number % _REPORT_INTERVAL_FRAMES == 0:
                    report(f"{number} of {source.total - done_before} frames done, the last {frame.name}")
        except KeyboardInterrupt:
            report(f"stopped; the last frame done is {last_name}. Run the same command again to continue.")
            raise
    report(f"Wrote {out / _LINES}{result_file_note}; frames left out: {failed}")
    if (cities := out / cityscapes3d_results.FOLDER).is_dir():
        report(f"Wrote {cities}, the benchmark's result files of the frames done so far")
    if source.posed:
        _write_submission(out)
        report(f"Wrote {out / nuscenes.FILE}, a submission of the frames done so far")
    if frames_with_remarks:
        report(f"frames with remarks: {frames_with_remarks}; see {_LINES}")
    return failed


def _write_submission(out: Path) -> None:
    """Writes nuScenes' submission file of all frames that are done, from their lines."""
    temporary = out / f".{nuscenes.FILE}"
    with (out / _LINES).open(encoding="utf-8") as lines, temporary.open("w", encoding="utf-8") as file:
        file.writelines(nuscenes.submission(json.loads(line) for line in lines))
    temporary.replace(out / nuscenes.FILE)


def _check_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings, or raises InvalidInputError if the existing results were made with other ones."""
    text = json.dumps(settings, indent=2) + "\n"
    if not file.exists():
        write_whole(file, text)
    elif file.read_text(encoding="utf-8") != text:
        raise InvalidInputError(
            f"{file.parent} holds results of another folder, or of other weights or options (see its {file.name}); "
            "choose another directory with --out"
        )


def _completed_frames(lines: Path) -> set[str]:
    """The names of the frames that have a complete line. An incomplete last line, as a crash leaves it, is cut off."""
    if not lines.exists():
        return set()
    content = lines.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        lines.write_bytes(complete)
    return {json.loads(line)["name"] for line in complete.splitlines()}
