"""No path of the machine in what is published: its last part alone."""
import pytest

from timm_icasc.runs.local_paths import find_local_path, without_local_paths


@pytest.mark.parametrize('command, published', [
    ('train_timm.py --data-dir /home/alice/cats --lr 0.1', 'train_timm.py --data-dir cats --lr 0.1'),
    ("train_timm.py --data-dir '/home/alice/My Data/cats'", 'train_timm.py --data-dir cats'),
    ("train_timm.py --data-dir='/home/alice/My Data/'", "train_timm.py '--data-dir=My Data'"),
    ('train_timm.py --data clients/acme/cats', 'train_timm.py --data cats'),  # an option cut short, a relative path
    ('train_timm.py --pretrained-path ~/w.pth', 'train_timm.py --pretrained-path w.pth'),
    ('train_timm.py --initial-checkpoint ../../w.pth', 'train_timm.py --initial-checkpoint w.pth'),
    (r"train_timm.py --data-dir 'C:\Users\alice\cats'", 'train_timm.py --data-dir cats'),
    ('train_timm.py --model local-dir:/srv/alice/net', 'train_timm.py --model local-dir:net'),
    ("train_timm.py --model-kwargs 'file=/srv/My Data/net.pth'", 'train_timm.py --model-kwargs file=net.pth'),
    ('train_timm.py --dataset wds//home/alice/shards', 'train_timm.py --dataset wds/shards'),
    ('train_timm.py -c /home/alice/mine.yaml', 'train_timm.py -c mine.yaml'),
    ('train_timm.py -c/home/alice/mine.yaml --lr 1', 'train_timm.py -cmine.yaml --lr 1'),
    ('train_timm.py -c=/home/alice/a=b.yaml', 'train_timm.py -c=a=b.yaml'),
    ("train_timm.py '-c/home/alice/My Data/r.yaml'", 'train_timm.py -cr.yaml'),
    ('train_timm.py -cclients/acme.yaml -j4 -b/srv/x', 'train_timm.py -cacme.yaml -j4 -bx'),
    ('train_timm.py -cfinetune -ctimm_icasc/recipes/finetune.yaml',
     'train_timm.py -cfinetune -ctimm_icasc/recipes/finetune.yaml'),
    (r"train_timm.py '-cC:\Users\alice\r.yaml'", 'train_timm.py -cr.yaml'),
    ('train_timm.py --output /home/alice/out --experiment x', 'train_timm.py --output out --experiment x'),
    ('train_timm.py --lr 1 && python train_timm.py --resume /home/alice/last.pth.tar',
     'train_timm.py --lr 1 && python train_timm.py --resume last.pth.tar'),
    ("train_timm.py --x 'not closed /home/alice/y", "train_timm.py --x 'not closed y"),
])
def test_a_command(command, published):
    assert without_local_paths({'command': command}) == {'command': published}
    assert find_local_path(published, 'command') is None


@pytest.mark.parametrize('command', [
    'train_timm.py --icasc-compare --seed 42',
    'train_timm.py --data-dir cats -c timm_icasc/recipes/cifar100_resnet110.yaml',
    'train_timm.py --model hf-hub:timm/resnet18.a1_in1k --dataset torch/cifar100 --push-to-hub me/x',
    "train_timm.py --icasc-layers layer3.1.conv2 layer4 --val-split 'validation[:50%]' --mean 0.1 0.2 0.3",
    'train_timm.py --model-kwargs file=https://example.com/a/w.pth',
    'torchrun --nnodes=1 --nproc_per_node=2 train_timm.py --aa rand-m9-mstd0.5-inc1',
])
def test_what_names_no_place_stays(command):
    assert without_local_paths({'command': command}) == {'command': command}
    assert find_local_path({'command': command}) is None


def test_options_and_records_through_and_through():
    found = {
        'data_dir': 'clients/acme/cats', 'class_map': None, 'model': 'local-dir:/srv/net', 'lr': 0.1, 'amp': False,
        'source': {'name': '/srv/w.pth'}, 'layers': ['layer3', '/srv/x'], 'label_names': ['/m/01yrx', 'a/b'],
        'resume': '', 'dataset': 'torch/cifar10'}
    assert without_local_paths(found) == {
        'data_dir': 'cats', 'class_map': None, 'model': 'local-dir:net', 'lr': 0.1, 'amp': False,
        'source': {'name': 'w.pth'}, 'layers': ['layer3', 'x'], 'label_names': ['/m/01yrx', 'a/b'],
        'resume': '', 'dataset': 'torch/cifar10'}
    assert find_local_path(found) == 'local-dir:/srv/net'


@pytest.mark.parametrize('text', [
    'train -c/home/alice/r.yaml', "train '-c/home/alice/My Data/r.yaml'", '-c~/r.yaml',
    r"train '-cC:\Users\alice\r.yaml'", 'train -c../r.yaml'])
def test_a_path_right_behind_a_short_option_is_found(text):
    assert find_local_path({'command': text}) == text


def test_nothing_is_left_of_the_root_and_of_dots():
    assert [without_local_paths(path, 'data_dir') for path in ('/', '..', './', '~', '')] == ['.', '.', '.', '.', '']
