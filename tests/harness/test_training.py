import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harness.context import PhaseClock, RunContext, Seeds
from harness.errors import ConfigError
from harness.training import (
    TrainRecipe,
    class_weights,
    fit,
    predict,
    random_shift,
    random_symmetry,
    set_train_mode,
    to_float,
    weighted_batches,
)


def context(seed: int = 0) -> RunContext:
    recipe = TrainRecipe(epochs=1)
    return RunContext(torch.device("cpu"), Seeds.all(seed), recipe, recipe)


def data(n: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 6, 6), generator=generator, dtype=torch.uint8)
    return images, torch.arange(n) % 3


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def test_equal_to_a_loop_written_by_hand() -> None:
    images, y = data()
    recipe = TrainRecipe(optimizer="sgd", lr=0.1, weight_decay=0.01, batch_size=16, epochs=3)
    ours = fit(model(), images, y, recipe, context())
    bare, stream = model(), context().generator("batches")
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        for index in torch.randperm(50, generator=stream).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(bare(images[index].float() / 255), y[index]).backward()
            optimizer.step()
    for one, other in zip(ours.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_streams_and_seeds() -> None:
    images, y = data()
    recipe = TrainRecipe(batch_size=16, steps=5)

    def train(seed: int, stream: str) -> torch.Tensor:
        return predict(fit(model(), images, y, recipe, context(seed), stream=stream), images)

    assert torch.equal(train(0, "a"), train(0, "a"))
    assert not torch.equal(train(0, "a"), train(0, "b"))
    assert not torch.equal(train(0, "a"), train(1, "a"))


def test_steps_and_epochs() -> None:
    assert TrainRecipe(epochs=3, batch_size=16).total_steps(50) == 12
    assert TrainRecipe(epochs=3).with_(steps=7).total_steps(50) == 7
    with pytest.raises(ConfigError, match="exactly one"):
        TrainRecipe()


def test_weighted_batches_draw_in_proportion() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    batches = weighted_batches(class_weights(labels), 1000, torch.Generator().manual_seed(0))
    drawn = torch.cat([labels[next(batches)] for _ in range(100)])
    assert abs(drawn.float().mean().item() - 0.5) < 0.02


def test_flips_draw_the_eight_symmetries_equally_often() -> None:
    picture = torch.arange(9.0).reshape(1, 1, 3, 3)
    views = random_symmetry(picture.expand(8000, 1, 3, 3), torch.Generator().manual_seed(0))
    found, counts = torch.unique(views.flatten(1), dim=0, return_counts=True)
    eight = [torch.rot90(side, turn, (2, 3)).flatten() for side in (picture, picture.flip(3)) for turn in range(4)]
    assert {tuple(view.tolist()) for view in found} == {tuple(view.tolist()) for view in eight}
    assert counts.min() > 850  # 1000 each, standard deviation 30


def test_flips_of_oblong_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"square images, these have 3 x 4"):
        random_symmetry(torch.zeros(2, 1, 3, 4), torch.Generator())


def test_shift_moves_pixels_and_keeps_range() -> None:
    x = torch.zeros(200, 1, 9, 9)
    x[:, :, 4, 4] = 1
    moved = random_shift(x, 2, torch.Generator().manual_seed(0))
    where = moved.flatten(1).argmax(1)
    assert len(where.unique()) == 25
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(200))


@pytest.mark.parametrize("shape", [(12, 1, 9, 9), (12, 3, 8, 8)])
def test_views_of_whole_images_are_those_of_slices_and_flips(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    side = shape[2]
    dy, dx = torch.randint(0, 7, (2, 12), generator=torch.Generator().manual_seed(2)).tolist()
    padded = F.pad(x, (3,) * 4, mode="reflect")
    moved = [image[:, i : i + side, j : j + side] for image, i, j in zip(padded, dy, dx, strict=True)]
    assert torch.equal(random_shift(x, 3, torch.Generator().manual_seed(2)), torch.stack(moved))
    drawn = torch.randint(0, 2, (3, 12), generator=torch.Generator().manual_seed(2)).tolist()
    turned = []
    for image, down, right, across in zip(x, *drawn, strict=True):
        image = image.flip(1) if down else image
        image = image.flip(2) if right else image
        turned.append(image.transpose(1, 2) if across else image)
    assert torch.equal(random_symmetry(x, torch.Generator().manual_seed(2)), torch.stack(turned))


def test_to_float_does_not_touch_its_input() -> None:
    images = data()[0]
    before = images.clone()
    assert to_float(images).max() <= 1
    assert torch.equal(images, before)


def test_predict_leaves_frozen_batchnorm_frozen() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    set_train_mode(net, freeze_batchnorm=True)
    predict(net, data()[0])
    assert net.training
    assert net[0].training
    assert not net[1].training


def test_clock_sums_to_wall_clock_and_interrupts_nested_phases() -> None:
    import time

    clock = PhaseClock()
    with clock.phase("align"):
        time.sleep(0.05)
        with clock.phase("explain", standalone=False):
            time.sleep(0.1)
        time.sleep(0.05)
    wall = clock.close()
    assert abs(sum(clock.spent.values()) - wall) < 0.02 * wall
    assert 0.09 < clock.spent["align"] < 0.15
    assert 0.09 < clock.spent["explain"] < 0.15
    assert clock.standalone["explain"] == 0
    assert clock.spent["idle"] < 0.02 * wall
    clock.charge_stage("explain", "k", 3.0)
    clock.charge_stage("explain", "k", 3.0)
    assert clock.standalone["explain"] == 3.0
