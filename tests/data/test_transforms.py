"""CenterCrop and training transforms, against torchvision's own pipeline and by their properties."""

import math

import numpy as np
import pytest
import torch
from data_folders import data_options, make_folder, picture
from PIL import Image
from torchvision.transforms import v2

from bignas_jax.config.choices import Crops, Policies
from bignas_jax.data import DataError, draws, open_dataset, transforms
from bignas_jax.data.transforms import NUM_DRAWS, Augmentation, CenterCrop, resized_crop_box, shifted

BICUBIC = v2.InterpolationMode.BICUBIC


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("set"), train=1, val=1)


def augmentation(root, **changes) -> Augmentation:
    off = dict(crop="none", flip=0.0)
    return open_dataset(data_options(root, image_size=32, eval_resize=32, augment=off | changes)).augmentation


def pixels(seed=0, size=(32, 32)) -> np.ndarray:
    return np.asarray(picture(seed, size, noise=True)).copy()


def numbers(seed: int) -> list[float]:
    return draws.uniforms(draws.key(seed), [0], NUM_DRAWS)[0].tolist()


@pytest.mark.parametrize(
    "size", [(40, 30), (30, 40), (27, 20), (20, 29), (33, 33), (20, 20), (47, 16), (9, 8), (301, 77)]
)
def test_evaluation_is_torchvisions_resize_and_centre_crop(size):
    image = np.asarray(picture(1, size)).copy()
    ours = CenterCrop(image_size=16, resize_to=20)(image)
    assert ours.shape == (16, 16, 3)
    pipeline = v2.Compose([v2.Resize(20, interpolation=BICUBIC, antialias=True), v2.CenterCrop(16)])
    by_pil = np.asarray(pipeline(Image.fromarray(image)))
    assert np.abs(ours.astype(int) - by_pil).max() <= 1
    by_tensor = pipeline(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.array_equal(ours, by_tensor)


@pytest.mark.parametrize("size", [(100, 1), (1, 333), (301, 3), (5, 333), (3001, 7)])
def test_of_a_sliver_the_middle_is_resized(size):
    image = pixels(1, size)
    ours = CenterCrop(image_size=16, resize_to=20)(image)
    pipeline = v2.Compose([v2.Resize(20, interpolation=BICUBIC, antialias=True), v2.CenterCrop(16)])
    whole = pipeline(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert ours.shape == (16, 16, 3) and np.abs(ours.astype(int) - whole).max() <= 2


@pytest.mark.parametrize("size", [(64, 1), (1, 64), (192, 3)])
def test_what_is_no_sliver_is_resized_as_a_whole(size):
    image = pixels(1, size)
    pipeline = v2.Compose([v2.Resize(20, interpolation=BICUBIC, antialias=True), v2.CenterCrop(16)])
    whole = pipeline(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.array_equal(CenterCrop(image_size=16, resize_to=20)(image), whole)


@pytest.mark.parametrize("crop", ["resized", "padded", "none"])
@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (1, 1)])
def test_memory_is_bounded_by_the_crop(root, monkeypatch, crop, size):
    """A sliver of 600 KB would have been resized to 154 GB for evaluation."""
    made = []
    resize = transforms.interpolate

    def counted(tensor, size, **how):
        made.append(3 * size[0] * size[1])
        return resize(tensor, size=size, **how)

    monkeypatch.setattr(transforms, "interpolate", counted)
    image = np.full((*size, 3), 77, np.uint8)
    augment = open_dataset(data_options(root, image_size=224, eval_resize=256, augment=dict(crop=crop))).augmentation
    for result in (CenterCrop(224, 256)(image), augment(image, numbers(1), 0)):
        assert result.shape == (224, 224, 3)
    assert (CenterCrop(224, 256)(image) == 77).all() and max(made) <= 65 * 3 * 256**2


def test_evaluation_leaves_an_image_of_the_right_size_alone():
    image = pixels()
    assert np.array_equal(CenterCrop(32, 32)(image), image)


@pytest.mark.parametrize("down, right", [(0, 0), (4, 4), (-4, 3), (2, -1), (-3, -4)])
def test_shifted_is_a_crop_of_the_padded_image(down, right):
    image = pixels()
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    assert np.array_equal(shifted(image, down, right), padded[4 - down : 36 - down, 4 - right : 36 - right])


def test_padded_crop_takes_every_offset_about_equally(root):
    crop = augmentation(root, crop="padded", padding=1)
    image = pixels()
    expected = {shifted(image, down, right).tobytes(): 0 for down in (-1, 0, 1) for right in (-1, 0, 1)}
    for seed in range(900):
        expected[crop(image, numbers(seed), 0).tobytes()] += 1
    assert len(expected) == 9 and 60 < min(expected.values()) and max(expected.values()) < 140


def test_flip_mirrors_about_half_of_the_images(root):
    image = pixels()
    flip_half = augmentation(root, flip=0.5)
    results = [flip_half(image, numbers(seed), 0) for seed in range(400)]
    flipped = [np.array_equal(result, image[:, ::-1]) for result in results]
    assert all(flip or np.array_equal(result, image) for flip, result in zip(flipped, results, strict=True))
    assert 160 < sum(flipped) < 240


def test_resized_crop_boxes_are_distributed_as_torchvisions():
    height, width, scale, ratio = 300, 400, (0.08, 1.0), (0.75, 1.3333)
    ours = np.array(
        [resized_crop_box(height, width, scale, ratio, numbers(seed)[9:]) for seed in range(3000)]
    )
    image, crop = torch.empty(3, height, width), v2.RandomResizedCrop(16, scale=scale, ratio=ratio)
    torch.manual_seed(0)
    drawn = [crop.make_params([image]) for _ in range(3000)]
    theirs = np.array([[box[name] for name in ("top", "left", "height", "width")] for box in drawn])
    top, left, h, w = ours.T
    assert top.min() >= 0 and left.min() >= 0 and (top + h).max() <= height and (left + w).max() <= width
    # 3,000 of each: quantiles of top, left, height and width agree within a few of their standard errors.
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        difference = np.quantile(ours, quantile, axis=0) - np.quantile(theirs, quantile, axis=0)
        assert np.abs(difference).max() < 15, (quantile, difference)
    assert abs(np.log(w / h).mean() - np.log(theirs[:, 3] / theirs[:, 2]).mean()) < 0.02


def test_resized_crop_boxes_stay_what_they_were():
    """Recorded once: a run that goes on takes the crops that it would have taken."""
    drawn = draws.uniforms(draws.key(7, 0, draws.AUGMENT), np.arange(4), NUM_DRAWS).tolist()
    boxes = [resized_crop_box(375, 500, (0.08, 1.0), (0.75, 1.3333), one[9:]) for one in drawn]
    assert boxes == [(41, 58, 321, 241), (0, 17, 370, 320), (20, 149, 251, 288), (65, 71, 294, 238)]


def test_resized_crop_of_a_sliver_falls_back_to_its_centre():
    assert resized_crop_box(10, 1000, (1.0, 1.0), (0.75, 1.25), numbers(0)[9:]) == (0, 494, 10, 12)
    assert resized_crop_box(1000, 10, (1.0, 1.0), (0.5, 1.25), numbers(0)[9:]) == (490, 0, 20, 10)


def test_resized_crop_resizes_its_box(root):
    image = pixels(size=(90, 70))
    drawn = numbers(3)
    ours = augmentation(root, crop="resized")(image, drawn, 0)
    top, left, height, width = resized_crop_box(70, 90, (0.08, 1.0), (0.75, 1.3333), drawn[9:])
    box = (left, top, left + width, top + height)
    by_pil = np.asarray(Image.fromarray(image).crop(box).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs(ours.astype(int) - by_pil).max() <= 1


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_results_are_laid_out_as_the_batch_is(root, flip):
    """Turning [3, H, W] around takes as long as resizing."""
    image = augmentation(root, crop="resized", flip=flip)(pixels(size=(90, 70)), numbers(3), 0)
    assert image.flags.c_contiguous and image.shape == (32, 32, 3)
    assert CenterCrop(32, 40)(pixels(size=(90, 70))).strides[1:] == (3, 1)


def test_reduction_leaves_the_crop_twice_the_pixels_of_its_result(root):
    crop = augmentation(root, crop="resized")
    found = set()
    for seed in range(60):
        factor = crop.reduction(numbers(seed))(900, 700)
        _, _, height, width = resized_crop_box(900, 700, (0.08, 1.0), (0.75, 1.3333), numbers(seed)[9:])
        assert factor == 1 or min(height, width) / factor >= 64
        assert factor == 8 or min(height, width) / (2 * factor) < 64
        found.add(factor)
    assert found == {2, 4, 8}
    assert {crop.reduction(numbers(seed))(60, 60) for seed in range(60)} == {1}
    assert augmentation(root, crop="padded").reduction(numbers(0)) is None


def test_a_crop_of_a_reduced_image_is_close_to_that_of_the_whole(root):
    """Nearer to PIL's antialiased crop of the full image than that is to itself half a result's pixel away."""
    crop = augmentation(root, crop="resized")
    whole = picture(2, (700, 900))
    for seed in range(20):
        drawn = numbers(seed)
        reduced = np.asarray(whole.reduce(crop.reduction(drawn)(900, 700))).copy()
        top, left, height, width = resized_crop_box(900, 700, (0.08, 1.0), (0.75, 1.3333), drawn[9:])
        by_pil, moved = (
            np.asarray(whole.resize((32, 32), Image.Resampling.BICUBIC, (x, y, x + width, y + height))).astype(int)
            for x, y in ((left, top), (abs(left - width / 64), abs(top - height / 64)))
        )
        difference = np.abs(crop(reduced, drawn, 0, full_size=(900, 700)) - by_pil).mean()
        assert difference < 0.75 * np.abs(moved - by_pil).mean(), seed
        assert difference < 3  # of 255: edges move by a quarter of a pixel at most, and this picture is steep


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn", "rand"])
def test_policies_are_torchvisions_under_the_seed(root, policy):
    image = pixels(5)
    grey = [128] * 3
    if policy == "rand":
        module = v2.RandAugment(2, 9, fill=grey)
    else:
        module = v2.AutoAugment(v2.AutoAugmentPolicy(policy), fill=grey)
    ours = augmentation(root, policy=policy)
    changed = 0
    for seed in (1, 2**63 + 5, 2**64 - 1, *range(10, 20)):
        torch.default_generator.manual_seed(seed)
        expected = np.asarray(module(Image.fromarray(image)))
        assert np.array_equal(ours(image, numbers(0), seed), expected)
        changed += not np.array_equal(expected, image)
    assert changed >= 6


@pytest.mark.parametrize("channel, name", [(0, "brightness"), (1, "contrast"), (2, "saturation"), (3, "hue")])
def test_color_jitter_is_torchvisions_within_its_strength(root, channel, name):
    strengths = [0.0] * 4
    strengths[channel] = 0.4
    image = pixels(7)
    jitter = augmentation(root, color_jitter=tuple(strengths))
    drawn = numbers(11)
    factor = 0.4 * (2 * drawn[1 + channel] - 1) + (name != "hue")
    expected = getattr(v2.functional, f"adjust_{name}")(Image.fromarray(image), factor)
    assert not np.array_equal(expected, image)
    assert np.array_equal(jitter(image, drawn, 0), np.asarray(expected))


def test_a_rectangle_is_erased_as_often_and_as_large_as_asked(root):
    erasing, image = augmentation(root, erasing=0.25), pixels(3)
    mean, boxes = np.round(image.mean((0, 1))).astype(np.uint8), []
    before = image.copy()
    for seed in range(2000):
        found = erasing(image, numbers(seed), 0)
        rows, columns = (np.flatnonzero((found != image).any((axis, 2))) for axis in (1, 0))
        if rows.size:
            top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            assert (found[top:bottom, left:right] == mean).all()
            outside = np.ones(image.shape[:2], bool)
            outside[top:bottom, left:right] = False
            assert (found[outside] == image[outside]).all()
            boxes.append((bottom - top, right - left))
    assert (image == before).all() and abs(len(boxes) / 2000 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)
    areas, ratios = (np.array([f(*box) for box in boxes]) for f in (lambda h, w: h * w / 1024, lambda h, w: w / h))
    # Sides are whole pixels. torchvision's own draws have these quartiles.
    assert 0.01 < areas.min() < 0.04 and 0.28 < areas.max() < 0.37 and 0.2 < ratios.min() and ratios.max() < 4.5
    torch.manual_seed(0)
    theirs = [v2.RandomErasing(p=1.0)(torch.ones(1, 32, 32)) for _ in range(2000)]
    share = np.array([(t == 0).float().mean().item() for t in theirs])
    for quantile in (0.25, 0.5, 0.75):
        assert abs(np.quantile(areas, quantile) - np.quantile(share, quantile)) < 0.04


def test_color_jitter_takes_its_four_steps_in_random_order(root):
    image = pixels(7)
    jitter = augmentation(root, color_jitter=(0.4, 0.4, 0.0, 0.0))
    drawn = numbers(11)
    results = set()
    for ranks in ([0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.3, 0.4]):
        drawn[5:9] = ranks
        results.add(jitter(image, drawn, 0).tobytes())
    assert len(results) == 2


def test_draws_are_uniform_and_independent():
    table = draws.uniforms(draws.key(3, 1, 4), np.arange(4000), 8)
    assert 0 <= table.min() and table.max() < 1
    counts = np.apply_along_axis(lambda column: np.histogram(column, 10, (0, 1))[0], 0, table)
    assert np.all(((counts - 400) ** 2 / 400).sum(axis=0) < 30)  # chi squared of 9 degrees: 30 is p < 0.001
    correlations = np.corrcoef(np.concatenate([table.T, np.roll(table, 1, axis=0).T]))
    assert np.abs(correlations - np.eye(16)).max() < 4 / math.sqrt(4000)


def test_draws_depend_on_key_and_index_alone():
    key = draws.key(-1, 2**70, 0)
    assert np.array_equal(draws.uniforms(key, [7, 5], 3)[::-1], draws.uniforms(key, [5, 7], 3))
    assert draws.key(0, 1) != draws.key(1, 0)
    order = draws.permutation(key, 1000)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(order, draws.permutation(key + np.uint64(1), 1000))


def test_draws_are_splitmix64():
    """The generator's first outputs for seed 1234567 (as Rosetta Code lists them)."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    expected.append(16408922859458223821)
    assert draws.bits(np.uint64(1234567), np.arange(5)).tolist() == expected


@pytest.mark.parametrize("crop", Crops)
@pytest.mark.parametrize("policy", Policies)
def test_every_crop_and_policy_of_the_options_gives_an_image(root, crop, policy):
    how = augmentation(root, crop=str(crop), policy=str(policy), flip=0.5)
    image = how(pixels(size=(60, 50)), numbers(3), torch_seed=5)
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert how.uses_torch_generator == (policy != "none")


@pytest.mark.parametrize("field", ["crop", "policy"])
def test_a_name_that_the_options_may_hold_and_nobody_acts_on_is_refused(root, field):
    how = augmentation(root).how
    object.__setattr__(how, field, "mosaic")
    with pytest.raises(DataError, match=f"config.data.augment.{field} is 'mosaic': expected one of .*none"):
        Augmentation(32, how)
