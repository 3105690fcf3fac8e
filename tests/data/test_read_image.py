"""Image files of every depth and orientation, and those that cannot be read."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from timm.data import IterableImageDataset

from timm_icasc.data import create_dataset, few_of_each_class
from timm_icasc.data.read_image import StreamImages, convert_image, read_image
from timm_icasc.errors import DataError

LEVELS = np.array([[0, 257, 12850], [32896, 65278, 65535]])
EIGHT_BITS = np.array([[0, 1, 50], [128, 254, 255]])


@pytest.fixture(params=['uint16 png', 'int32 tif', '>u2 tif', '<u2 tif', '<u2 jp2'])
def deep(request, tmp_path):
    """A file of 16-bit levels."""
    kind, ending = request.param.split()
    path = tmp_path / f'deep.{ending}'
    Image.fromarray(LEVELS.astype(kind)).save(path)
    return path


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_sixteen_bits_are_scaled(mode, deep):
    pixels = np.array(read_image(deep, mode))
    assert (pixels.reshape(2, 3, -1) == EIGHT_BITS[..., None]).all()


def test_integers_of_eight_bits_stay(tmp_path):
    Image.fromarray(EIGHT_BITS.astype('int32')).save(tmp_path / 'x.tif')
    assert (np.array(read_image(tmp_path / 'x.tif', 'L')) == EIGHT_BITS).all()


def test_a_dark_image_of_sixteen_bits(tmp_path):
    """Pillow opens a PGM of 16 bits, and in earlier releases a PNG, as integers of 32; all levels may be small."""
    (tmp_path / 'x.pgm').write_bytes(b'P5 2 1 65535\n' + np.array([0, 255], '>u2').tobytes())
    assert np.array(read_image(tmp_path / 'x.pgm', 'L')).tolist() == [[0, 1]]
    (tmp_path / 'x.pgm').write_bytes(b'P5 2 1 4095\n' + np.array([0, 4095], '>u2').tobytes())
    assert np.array(read_image(tmp_path / 'x.pgm', 'L')).tolist() == [[0, 255]], 'of its own greatest level'
    file = tmp_path / 'x.png'
    Image.fromarray(np.array([[0, 255]], 'uint16')).save(file)
    assert np.array(read_image(file, 'L')).tolist() == [[0, 1]]
    with Image.open(file) as image:
        integers = Image.fromarray(np.array([[0, 255]], 'int32'))
        integers.format = image.format
        assert np.array(convert_image(integers, 'L')).tolist() == [[0, 1]]


@pytest.mark.parametrize('levels', [[0, .5, 1], [0, 60, 4000], [-3, 0, 9], [0, 1, float('nan')]])
def test_fractions_of_no_known_scale(levels, tmp_path):
    Image.fromarray(np.array([levels], 'float32')).save(tmp_path / 'x.tif')
    with pytest.raises(DataError, match='x.tif.: its levels are fractions .* save 8 or 16 bits'):
        read_image(tmp_path / 'x.tif')


def test_fractions_of_eight_bits(tmp_path):
    Image.fromarray(EIGHT_BITS.astype('float32')).save(tmp_path / 'x.tif')
    assert (np.array(read_image(tmp_path / 'x.tif', 'L')) == EIGHT_BITS).all()


def make_folder(root, save):
    for split in ('train', 'validation'):
        for name in ('a', 'b'):
            (root / split / name).mkdir(parents=True)
            save(root / split / name / 'x.png')


def save_deep(path):
    Image.fromarray(LEVELS.astype('uint16')).save(path)


@pytest.mark.parametrize('name', ['', 'torch/image_folder', 'multilabel', 'cifar100'])
def test_sixteen_bits_in_every_reader_of_files(name, tmp_path):
    make_folder(tmp_path, save_deep)
    (tmp_path / 'test').symlink_to(tmp_path / 'validation')  # CIFAR-100's name of the split
    (tmp_path / 'validation.csv').write_text('image,labels\nvalidation/a/x.png,a\nvalidation/b/x.png,b\n')
    image, _ = create_dataset(name, str(tmp_path), 'validation')[0]
    assert (np.array(image) == EIGHT_BITS[..., None]).all()


def test_streams(tmp_path):
    class Reader:
        input_img_mode = 'RGB'

        def __iter__(self):
            for name in ('x.png', 'broken.png'):
                yield Image.open(tmp_path / name), 3

    save_deep(tmp_path / 'x.png')
    (tmp_path / 'broken.png').write_bytes(b'no image')
    reader = Reader()
    stream = iter(StreamImages(IterableImageDataset('', reader=reader), 'RGB'))
    image, target = next(stream)
    assert (np.array(image) == EIGHT_BITS[..., None]).all() and target == 3 and not reader.input_img_mode
    with pytest.raises(DataError, match='Cannot read an image of the data set: .*broken.png'):
        next(stream)


def test_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (12, 4)).save(tmp_path / 'x.jpg', exif=exif)
    assert read_image(tmp_path / 'x.jpg').size == (12, 4)
    assert read_image(tmp_path / 'x.jpg', upright=True).size == (4, 12)
    (tmp_path / 'train' / 'a').mkdir(parents=True)
    (tmp_path / 'x.jpg').rename(tmp_path / 'train' / 'a' / 'x.jpg')
    folders = [create('', root=str(tmp_path), split='train') for create in (create_dataset, timm.data.create_dataset)]
    assert [folder[0][0].size for folder in folders] == [(12, 4)] * 2  # of a folder as timm does it


def test_everything_that_pillow_raises_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / 'x.png'
    save_deep(path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2)
    with pytest.raises(DataError, match="Cannot read the image '.*x.png': Image size"):  # DecompressionBombError
        read_image(path)
    monkeypatch.undo()

    def broken(*_):
        raise SyntaxError('broken PNG file (bad header checksum)')

    monkeypatch.setattr(Image, 'open', broken)  # as its decoders do, some of them only while pixels are read
    with pytest.raises(DataError, match="Cannot read the image '.*x.png': broken PNG"):
        read_image(path)


def test_no_image_of_another_class_or_draw_takes_a_place(tmp_path):
    """One of the next class came in the place of a class's last, and one that was not drawn in that of a drawn one."""
    make_folder(tmp_path, save_deep)
    for name in ('a', 'b'):
        for i in range(5):
            shutil.copy(tmp_path / 'train' / name / 'x.png', tmp_path / 'train' / name / f'{i}.png')
    dataset = create_dataset('', str(tmp_path), 'train', is_training=True)
    few = few_of_each_class(dataset, 3, seed=0)
    names = [Path(few.filename(i)) for i in range(6)]
    served = []
    reading = dataset._read
    dataset._read = lambda index: (served.append(Path(dataset.filename(index))), reading(index))[1]
    for last in (0, 1):  # what is drawn of a class, from its last on
        for name in names[3 * last:3 * last + 3][:0:-1]:
            (tmp_path / 'train' / name).write_bytes(b'no image')
        served.clear()
        assert few[3 * last + 2][1] == last and served[-1] == names[3 * last]
    (tmp_path / 'train' / names[0]).write_bytes(b'no image')
    with pytest.raises(DataError, match='Cannot read the image'):
        few[0]


def test_an_unreadable_image_is_passed_over_in_training_alone(tmp_path, caplog):
    make_folder(tmp_path, save_deep)
    shutil.copy(tmp_path / 'train' / 'a' / 'x.png', tmp_path / 'train' / 'a' / 'y.png')
    for split in ('train', 'validation'):
        (tmp_path / split / 'a' / 'x.png').write_bytes(b'no image')
    image, target = create_dataset('', str(tmp_path), 'train', is_training=True)[0]
    assert target == 0 and image.size == (3, 2)
    assert 'train/a/x.png' in caplog.text and 'the next one of its class is taken' in caplog.text
    (tmp_path / 'test').symlink_to(tmp_path / 'validation')
    for name in ('', 'torch/image_folder', 'cifar100'):
        with pytest.raises(DataError, match="(validation|test)/a/x.png"):
            create_dataset(name, str(tmp_path), 'validation')[0]
