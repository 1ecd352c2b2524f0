"""Generators leave PyTorch: as exported programs and as ONNX, for any number of images.

What runs the ONNX file is onnxruntime, which shares no code with PyTorch.
"""

import onnxruntime
import pytest
import torch

import cgan_utils as cg
from cgan_utils import sampling

pytestmark = pytest.mark.slow  # an export takes seconds

BATCH = {0: torch.export.Dim("batch")}
ORIGINAL, TUNED = cg.CGANConfig.original(), cg.CGANConfig.tuned()
CONFIGS = {
    "original": ORIGINAL,
    "tuned": TUNED,
    "no patches, no norm": TUNED.replace(patch_decoder=False, conditional_batch_norm=False),
}


def inputs(generator, count):
    labels = torch.arange(count) % generator.config.num_classes
    return cg.sample_latent(count, generator.config.latent_dim, seed=count), labels


def assert_same_images(exported, generator, tolerance):
    for count in (1, 2, 7):
        z, labels = inputs(generator, count)
        images, expected = exported(z, labels), cg.sample(generator, labels, latent=z)
        torch.testing.assert_close(images, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_trained_networks_export_for_any_number_of_images(config):
    classes, shape = ("a", "b", "c"), (3, 10, 6)  # the patch decoder cuts both sides
    images = torch.randint(0, 256, (48, *shape), dtype=torch.uint8)
    data = cg.LabelledImages(images, torch.arange(48) % 3, classes)
    config = config.replace(classes=classes, image_shape=shape, batch_size=16, epochs=1)
    state = cg.train(config, data, device="cpu", engine="eager", progress=False)

    generator = sampling.generator_of(state).eval()
    program = torch.export.export(generator, inputs(generator, 3), dynamic_shapes=(BATCH, BATCH))
    assert_same_images(program.module(), generator, tolerance=1e-6)

    batch = cg.normalize(data.images), data.labels
    few = tuple(each[:3] for each in batch)
    program = torch.export.export(state.discriminator, few, dynamic_shapes=(BATCH, BATCH))
    torch.testing.assert_close(program.module()(*batch), state.discriminator(*batch))


@pytest.mark.parametrize("recipe", ["original", "tuned"])
def test_onnx_gives_the_images_of_the_shipped_generators(recipe, tmp_path):
    generator = cg.load_pretrained(recipe)
    path = tmp_path / "generator.onnx"
    options = {"dynamo": True, "dynamic_shapes": (BATCH, BATCH), "verbose": False}
    torch.onnx.export(generator, inputs(generator, 3), path, **options)
    session = onnxruntime.InferenceSession(path)

    def run(z, labels):
        (images,) = session.run(None, {"z": z.numpy(), "labels": labels.numpy()})
        return torch.from_numpy(images)

    # its kernels round otherwise; over 5,000 images the largest difference seen was 1e-5
    assert_same_images(run, generator, tolerance=2e-5)
