"""Overlapping frames: the same results as one by one, in order, a bounded number in progress, errors kept separate."""

import shutil
import threading
from types import SimpleNamespace

import pytest
import torch

from apps.driving.adapters import kitti
from apps.driving.inference import video
from apps.driving.inference.video import overlapped
from apps.driving.predictor import Options
from tests.fake_cuda import CUDA, fake_cuda

LIMIT_S = 60


def results(answers):
    return [(item, answer.result(LIMIT_S)) for item, answer in answers]


@pytest.fixture
def camera_frames(synthetic):
    """Five frames with only an image, each a smaller crop of one image."""
    frame = kitti.read(synthetic)[0]
    camera = frame.cameras["image_2"]

    def cut(number):
        view = camera.image_HWC[:, : camera.image_HWC.shape[1] - 8 * number]
        return {"image_2": type(camera)(**{**fields(camera), "image_HWC": view})}

    return [type(frame)(name=f"{number:06d}", points_lidar_m=None, cameras=cut(number)) for number in range(5)]


def fields(camera):
    return {name: getattr(camera, name) for name in camera.__dataclass_fields__}


def test_the_boxes_equal_those_of_frame_by_frame_processing(predictor, camera_frames):
    options = Options(score=0.05)
    expected = predictor.predict(camera_frames, options)
    answers = overlapped(
        camera_frames,
        lambda frame: predictor.prepare(frame, options),
        predictor.compute,
        lambda computed: predictor.finish(computed, options),
    )
    found = results(answers)
    assert [frame.name for frame, _ in found] == [frame.name for frame in camera_frames]
    for (_, found_detections), expected_detections in zip(found, expected, strict=True):
        assert len(found_detections.boxes) and found_detections.boxes.names == expected_detections.boxes.names
        assert (found_detections.boxes.array == expected_detections.boxes.array).all() and (
            found_detections.boxes.scores == expected_detections.boxes.scores
        ).all()


def test_reading_network_and_decoding_run_concurrently():
    """Each step waits until the other two are at their frames: run one after the other, none would ever continue."""
    begun = {(step, n): threading.Event() for step in ("read", "compute", "finish") for n in range(6)}

    def meets(step, *others):
        def call(n):
            begun[step, n].set()
            if n in (1, 2, 3):
                assert all(begun[other, n + away].wait(LIMIT_S) for other, away in others), (step, n)
            return n

        return call

    answers = overlapped(
        range(6),
        meets("read"),
        meets("compute", ("read", 1), ("finish", -1)),
        meets("finish", ("compute", 1), ("read", 2)),
        readers=1,
    )
    assert results(answers) == [(n, n) for n in range(6)]


@pytest.mark.parametrize("readers", [1, 3])
def test_a_bounded_number_of_frames_is_in_progress(readers):
    under_way, most, lock = set(), [0], threading.Lock()

    def read(n):
        with lock:
            under_way.add(n)
            most[0] = max(most[0], len(under_way))
        return n

    for n, answer in overlapped(range(50), read, lambda n: n, lambda n: n, readers=readers):
        assert answer.result(LIMIT_S) == n
        with lock:
            under_way.remove(n)
    assert most[0] <= readers + 2


@pytest.mark.parametrize("step", [0, 1, 2])
def test_an_error_affects_only_its_frame(step):
    def failing(n):
        if n == 2:
            raise ValueError(f"frame {n} is torn")
        return n

    steps = [failing if number == step else (lambda n: n) for number in range(3)]
    found = []
    for n, answer in overlapped(range(5), *steps):
        try:
            found.append(answer.result(LIMIT_S))
        except ValueError as error:
            found.append(str(error))
            assert n == 2
    assert found == [0, 1, "frame 2 is torn", 3, 4]


def test_results_computed_before_an_interrupt_are_yielded_first():
    def compute(n):
        if n == 2:
            raise KeyboardInterrupt
        return n

    found, before = [], threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        for n, answer in overlapped(range(100), lambda n: n, compute, lambda n: n):
            found.append((n, answer.result(LIMIT_S)))
    assert found == [(0, 0), (1, 1)] and threading.active_count() == before


def test_stopping_early_leaves_no_thread_behind():
    before = threading.active_count()
    answers = overlapped(range(100), lambda n: n, lambda n: n, lambda n: n)
    next(answers)
    answers.close()
    assert threading.active_count() == before


class Streams:
    """Replaces CUDA's streams and events, and records which stream waited for which."""

    def __init__(self, patch):
        self.log, self.made = [], 0
        self.of_thread = threading.local()
        default = self.stream("caller's")
        patch.setattr(torch.cuda, "Stream", self.another)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: getattr(self.of_thread, "stream", default))
        patch.setattr(torch.cuda, "stream", self.entered)

    def another(self, device=None):
        self.made += 1
        return self.stream(threading.current_thread().name.partition("_")[0])

    def stream(self, name):
        return SimpleNamespace(
            name=name,
            record_event=lambda: f"event of {name}",
            wait_event=lambda event: self.log.append((name, event)),
        )

    def entered(self, stream):
        streams = self

        class Entered:
            def __enter__(self):
                self.before = getattr(streams.of_thread, "stream", None)
                streams.of_thread.stream = stream

            def __exit__(self, *_):
                if self.before is None:
                    del streams.of_thread.stream
                else:
                    streams.of_thread.stream = self.before

        return Entered()


def test_on_a_gpu_a_step_waits_for_the_previous_one_in_its_own_stream(monkeypatch):
    streams, used = Streams(monkeypatch), []

    class OnDevice(torch.Tensor):
        device = CUDA

        def record_stream(self, stream):
            used.append(stream.name)

    def step(_):
        where.append(torch.cuda.current_stream().name)
        return ({"image": [torch.zeros(1).as_subclass(OnDevice)]}, torch.zeros(1))

    where = []
    found = results(overlapped(range(3), step, step, step, device="cuda", readers=1))
    assert len(found) == 3
    assert sorted(where) == sorted(["read", "caller's", "finish"] * 3)
    assert sorted(streams.log) == sorted([("caller's", "event of read"), ("finish", "event of caller's")] * 3)
    # Memory of one step's stream that the next uses is marked as in use there.
    assert sorted(used) == sorted(["caller's", "finish"] * 3) and streams.made == 2


def test_several_frames_on_the_fake_gpu_give_the_boxes_of_each_alone(predictor, camera_frames, monkeypatch):
    options, least = Options(score=0.05), predictor.least_scores
    with fake_cuda():
        Streams(monkeypatch)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
        # The fake GPU works in one thread only.
        monkeypatch.setattr(video, "ThreadPoolExecutor", AtOnce)
        there = type(predictor)(
            detectors={"fcos3d": moved(predictor.detectors["fcos3d"])}, least_scores=least, device="cuda"
        )
        expected = [there.predict([frame], options)[0] for frame in camera_frames]
        found = there.predict(camera_frames, options)
    for found_detections, expected_detections in zip(found, expected, strict=True):
        assert len(found_detections.boxes) and found_detections.boxes.names == expected_detections.boxes.names
        assert (found_detections.boxes.array == expected_detections.boxes.array).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_frames_that_overlap_on_a_gpu_give_the_boxes_of_each_alone(predictor, camera_frames):
    options, detector = Options(score=0.05), predictor.detectors["fcos3d"]
    there = type(predictor)(detectors={"fcos3d": moved(detector)}, least_scores=predictor.least_scores, device="cuda")
    frames = camera_frames * 8
    expected = [there.predict([frame], options)[0] for frame in frames]
    for found_detections, expected_detections in zip(there.predict(frames, options), expected, strict=True):
        assert (
            found_detections.boxes.names == expected_detections.boxes.names
            and (found_detections.boxes.array == expected_detections.boxes.array).all()
        )


def moved(detector):
    """The detector with its images and maps on the GPU; the network computes on the CPU."""

    def compute(inputs):
        found = detector.program({name: value.cpu() for name, value in inputs.items()})
        return {name: value.to("cuda") for name, value in found.items()}

    return type(detector)(compute, detector.input, "cuda", detector.colours, detector.decode)


class AtOnce:
    """An executor that calls in the caller's thread."""

    def __init__(self, *_):
        pass

    def submit(self, call, *arguments):
        future = video.Future()
        future.set_result(call(*arguments))
        return future

    def shutdown(self, **_):
        pass

    __enter__, __exit__ = lambda self: self, lambda self, *_: None


def test_the_command_processes_jpeg_folders(predictor, synthetic, tmp_path):
    """Like ``--each``: one of three images is truncated and named in the log; the other two get results."""
    from PIL import Image

    from apps.driving.inference.folder import predict_folder

    root = tmp_path / "training"
    for part in ("image_2", "calib"):
        (root / part).mkdir(parents=True)
    for number in range(3):
        shutil.copy(synthetic / "calib" / "synthetic.txt", root / "calib" / f"{number:06d}.txt")
        Image.open(synthetic / "image_2" / "synthetic.png").save(root / "image_2" / f"{number:06d}.jpg")
    torn = root / "image_2" / "000001.jpg"
    torn.write_bytes(torn.read_bytes()[:2000])
    log = []
    assert predict_folder(predictor, root, tmp_path / "out", Options(score=0.05), log.append) == 1
    assert sum(text.startswith("left out: 000001.jpg cannot be read") for text in log) == 1
    assert sorted(file.name for file in (tmp_path / "out").glob("*.txt")) == ["000000.txt", "000002.txt"]
