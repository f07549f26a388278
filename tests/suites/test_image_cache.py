"""The image cache: decoded once, damage noticed and mended, stopped work resumed, several makers at a time."""

import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.errors import DataError
from suites import decode, image_cache
from suites.image_cache import CacheItem, CacheRequest, Geometry, cached, file_digests, prepare, render, survey

SIDE = 24


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VABENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 noisy PNG files: three chunks of work."""
    root = tmp_path / "images"
    root.mkdir()
    for k in range(40):
        noise = np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"i{k:02d}.png")
    return root


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was decoded, by name."""
    count: Counter[str] = Counter()
    original = decode.read_image

    def counted(path: Path, mode: Any = "RGB") -> decode.Decoded:
        count[path.name] += 1
        return original(path, mode)

    monkeypatch.setattr(decode, "read_image", counted)
    return count


def request(folder: Path, side: int = 12) -> CacheRequest:
    return CacheRequest("toy images", tuple(CacheItem(p) for p in sorted(folder.iterdir())), Geometry(side, side))


def expected(folder: Path, side: int = 12) -> np.ndarray:
    return np.stack([render(CacheItem(p), Geometry(side, side))[0] for p in sorted(folder.iterdir())])


def test_every_file_is_decoded_once_and_rows_keep_their_order(folder: Path, decodings: Counter[str]) -> None:
    made = prepare(request(folder))
    assert set(decodings.values()) == {1}
    assert len(decodings) == 40
    again = prepare(request(folder))
    assert set(decodings.values()) == {1}  # none a second time
    assert again.folder == made.folder
    np.testing.assert_array_equal(again.pixels, expected(folder))


def test_the_second_read_opens_no_original(folder: Path) -> None:
    before = np.array(prepare(request(folder)).pixels)
    for path in folder.iterdir():  # other bytes that nobody can tell apart without opening the file
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    np.testing.assert_array_equal(prepare(request(folder)).pixels, before)


def test_the_array_cannot_be_written_to(folder: Path) -> None:
    made = prepare(request(folder))
    with pytest.raises(ValueError, match="read-only"):
        made.pixels[0] = 0


def test_a_changed_file_another_size_or_order_is_another_entry(folder: Path) -> None:
    first = prepare(request(folder))
    Image.new("RGB", (SIDE, SIDE), "red").save(folder / "i03.png")
    changed = prepare(request(folder))
    assert changed.folder != first.folder
    assert (changed.pixels[3] == (255, 0, 0)).all()
    assert prepare(request(folder, 8)).folder != changed.folder
    backwards = CacheRequest("toy images", request(folder).items[::-1], Geometry(12, 12))
    np.testing.assert_array_equal(prepare(backwards).pixels, changed.pixels[::-1])


def damage_half(entry: Path) -> None:
    data = (entry / "pixels.npy").read_bytes()
    (entry / "pixels.npy").write_bytes(data[: len(data) // 2])


def damage_zeros(entry: Path) -> None:
    size = (entry / "pixels.npy").stat().st_size
    time.sleep(0.02)  # file systems count time in steps of some milliseconds
    with open(entry / "pixels.npy", "rb+") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))


def damage_shape(entry: Path) -> None:
    np.save(entry / "pixels.npy", np.zeros((40, 12, 12, 1), dtype=np.uint8))


def damage_gone(entry: Path) -> None:
    (entry / "pixels.npy").unlink()


def damage_index_half(entry: Path) -> None:
    text = (entry / "index.json").read_text()
    (entry / "index.json").write_text(text[: len(text) // 2])


def damage_index_keys(entry: Path) -> None:
    (entry / "index.json").write_text("{}")


def damage_index_list(entry: Path) -> None:
    (entry / "index.json").write_text("[]")


DAMAGES = [
    damage_half,
    damage_zeros,
    damage_shape,
    damage_gone,
    damage_index_half,
    damage_index_keys,
    damage_index_list,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_noticed_and_made_again(folder: Path, damage: Any) -> None:
    damage(prepare(request(folder)).folder)
    assert cached(request(folder)) is None
    np.testing.assert_array_equal(prepare(request(folder)).pixels, expected(folder))
    assert cached(request(folder)) is not None


def test_a_copied_cache_with_other_times_is_read_not_made_again(
    folder: Path, cache: Path, tmp_path: Path, decodings: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(request(folder))
    shutil.copytree(cache, tmp_path / "copy", copy_function=shutil.copyfile)
    for path in (tmp_path / "copy").rglob("pixels.npy"):
        os.utime(path, (1, 1))
    monkeypatch.setenv("VABENCH_CACHE", str(tmp_path / "copy"))
    prepare(request(folder))
    assert set(decodings.values()) == {1}


def test_stopped_work_goes_on_where_it_was(folder: Path, decodings: Counter[str]) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(request(folder), stop)
    assert len(decodings) == 16
    assert cached(request(folder)) is None  # half an entry is none
    made = prepare(request(folder))
    assert set(decodings.values()) == {1}
    assert len(decodings) == 40
    np.testing.assert_array_equal(made.pixels, expected(folder))


def test_a_journal_cut_in_the_middle_of_a_line_loses_that_line_alone(
    folder: Path, cache: Path, decodings: Counter[str]
) -> None:
    def stop_after(limit: int) -> Any:
        def stop(done: int, total: int) -> None:
            if done >= limit:
                raise KeyboardInterrupt

        return stop

    with pytest.raises(KeyboardInterrupt):
        prepare(request(folder), stop_after(16))
    (journal,) = cache.rglob("done.jsonl")
    journal.write_text(journal.read_text()[:-4])  # as a power cut leaves it
    with pytest.raises(KeyboardInterrupt):
        prepare(request(folder), stop_after(32))
    prepare(request(folder))
    twice = [name for name, number in decodings.items() if number > 1]
    assert twice == ["i15.png"]


def test_an_unusable_file_is_named_and_the_others_are_kept(folder: Path, decodings: Counter[str]) -> None:
    good = (folder / "i05.png").read_bytes()
    (folder / "i05.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"i05\.png cannot be read as an image .*copy or download it again"):
        prepare(request(folder))
    assert cached(request(folder)) is None
    found = survey(request(folder))
    assert len(found.errors) == 1
    assert "i05.png" in found.errors[0]
    decodings.clear()
    with pytest.raises(DataError, match=r"i05\.png"):
        prepare(request(folder))
    assert dict(decodings) == {"i05.png": 1}
    (folder / "i05.png").write_bytes(good)
    np.testing.assert_array_equal(prepare(request(folder)).pixels, expected(folder))


def test_many_unusable_files_are_counted_and_a_missing_one_is_named(folder: Path) -> None:
    for k in range(5):
        (folder / f"i0{k}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"i00\.png is empty \(0 bytes\).*i02\.png.*and 2 more files"):
        prepare(request(folder))
    held = request(folder)
    (folder / "i39.png").unlink()
    with pytest.raises(DataError, match=r"i39\.png cannot be read"):
        prepare(held)
    assert any("there is no file" in error and "i39.png" in error for error in survey(held).errors)


def test_repairs_are_counted_in_the_index(folder: Path) -> None:
    Image.new("L", (SIDE, SIDE), 90).save(folder / "i00.png")
    Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0)).save(folder / "i01.png")
    made = prepare(request(folder))
    assert made.repairs == {"alpha": 1, "grey": 1}
    assert (made.pixels[1] == 255).all()  # transparent is white
    assert prepare(request(folder)).repairs == made.repairs
    files = json.loads((made.folder / "index.json").read_text())["files"]
    assert [f["name"] for f in files if "repairs" in f] == ["i00.png", "i01.png"]


def test_padding_keeps_the_aspect_and_masks_become_shares(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "white").save(tmp_path / "wide.png")
    padded, _ = render(CacheItem(tmp_path / "wide.png"), Geometry(20, 20, fit="pad"))
    assert (padded[5:15] == 255).all()
    assert not padded[:5].any()
    assert not padded[15:].any()
    mask = np.zeros((4, 4), dtype=np.bool_)
    mask[0, :3] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    share, _ = render(CacheItem(tmp_path / "mask.png"), Geometry(2, 2, mode="mask"))
    np.testing.assert_array_equal(share[..., 0], [[128, 64], [0, 0]])


def _maker(folder: str, barrier: Any, queue: Any) -> None:
    barrier.wait()
    made = prepare(request(Path(folder)))
    queue.put((int(made.pixels.astype(np.int64).sum()), len(made.pixels)))


def test_processes_that_make_one_entry_at_a_time_get_equal_arrays(folder: Path, cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(4), context.Queue()
    makers = [context.Process(target=_maker, args=(str(folder), barrier, queue)) for _ in range(4)]
    for maker in makers:
        maker.start()
    sums = {queue.get(timeout=30) for _ in makers}
    for maker in makers:
        maker.join(30)
        assert maker.exitcode == 0
    assert sums == {(int(expected(folder).astype(np.int64).sum()), 40)}
    assert [p.name for p in (cache / "images").iterdir() if p.is_dir()] == [prepare(request(folder)).folder.name]


def test_threads_make_one_entry_once(folder: Path, decodings: Counter[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(lambda _: np.array(prepare(request(folder)).pixels), range(8)))
    assert set(decodings.values()) == {1}
    assert all((array == arrays[0]).all() for array in arrays)


def test_digests_can_be_noted_by_many_threads_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One temporary name per process let a thread rename away what another was about to rename."""
    paths, pause = sorted(folder.iterdir()), image_cache.os.replace

    def slow(source: Any, target: Any) -> None:
        time.sleep(0.05)  # all threads have written before the first renames
        pause(source, target)

    monkeypatch.setattr(image_cache.os, "replace", slow)
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda k: image_cache._write_atomically(folder / "memo", str(k)), range(6)))
        digests = list(pool.map(lambda _: file_digests(paths), range(6)))
    assert len(made) == 6
    assert all(held == digests[0] for held in digests)


def test_a_cache_folder_that_cannot_be_written_costs_digests_nothing(folder: Path, cache: Path) -> None:
    cache.write_text("a file where the folder would be")
    assert len(file_digests(sorted(folder.iterdir()))) == 40


def test_worker_processes_give_the_same_rows(folder: Path) -> None:
    np.testing.assert_array_equal(prepare(request(folder), workers=2).pixels, expected(folder))


# -- one file ---------------------------------------------------------------------------------------------------------


def jpeg(path: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=90)
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("tail", ["gone", "zeros"])
def test_a_jpeg_that_was_cut_short_is_an_error_also_when_its_tail_is_zeros(
    tmp_path: Path, kept: float, tail: str
) -> None:
    data = jpeg(tmp_path / "a.jpg")
    cut = int(len(data) * kept)
    (tmp_path / "a.jpg").write_bytes(data[:cut] + (bytes(len(data) - cut) if tail == "zeros" else b""))
    with pytest.raises(DataError, match=r"a\.jpg (cannot be read as an image|is a JPEG without its end)"):
        decode.read_image(tmp_path / "a.jpg")


def test_a_thumbnail_does_not_hide_a_missing_end_and_a_trailer_is_no_fault(tmp_path: Path) -> None:
    thumbnail = jpeg(tmp_path / "small.jpg")
    data = jpeg(tmp_path / "a.jpg")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail  # its own start and end inside
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:-700] + bytes(700))
    with pytest.raises(DataError, match="without its end"):
        decode.read_image(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(data[:2] + segment + b"\xff" + data[2:] + b"a maker's trailer")
    np.testing.assert_array_equal(
        decode.read_image(tmp_path / "b.jpg").pixels, decode.read_image(tmp_path / "small.jpg").pixels
    )
