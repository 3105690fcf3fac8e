"""The options of the training, group by group: timm's names where timm has the option."""
import argparse
from collections.abc import Sequence

from timm.utils import ParseKwargs

from ..attention import trainable_methods
from ..data.dataset_factory import NAMES
from ..labels import MULTI, RIVALS, SINGLE
from ..losses import MASK_SCALES
from ..objective.config import MULTILABEL_MAPS, TERMS, ICASCConfig
from ..task.public_approach import DEFECTS
from .device import usable_cores

__all__ = ['GROUPS']


class KeyValues(ParseKwargs):
    """timm's KEY=VALUE arguments; a word of another form is said to be one."""

    def __call__(
            self,
            parser: argparse.ArgumentParser,
            namespace: argparse.Namespace,
            values: Sequence[str],
            option_string: str | None = None,
    ) -> None:
        for value in values:
            if value.count('=') != 1:
                raise argparse.ArgumentError(self, f"'{value}' is not of the form KEY=VALUE")
        super().__call__(parser, namespace, values, option_string)


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Data')
    group.add_argument('--data-dir', metavar='DIR', help='path to the data set; of images DIR/SPLIT/CLASS/IMAGE')
    group.add_argument(
        '--dataset', metavar='NAME', default='',
        help="data set type: '' for an image folder, 'digits' (embedded), "
             f"{', '.join(NAMES)} ('multilabel': SPLIT.csv or SPLIT.json in DIR, 'singlelabel': SPLIT.csv), or "
             'TYPE/NAME as timm takes it: torch/cifar100, hfds/..., wds/...')
    group.add_argument('--train-split', metavar='NAME', default='train', help='training split (default: %(default)s)')
    group.add_argument(
        '--val-split', metavar='NAME', default='validation',
        help='validation split (default: %(default)s)')
    group.add_argument(
        '--limit-train', type=int, metavar='N',
        help='train on N images of each class, drawn by --seed (default: on all)')
    group.add_argument(
        '--balanced-sampling', action='store_true',
        help='draw each class equally often, as many images an epoch as without; single-label data that are no stream')
    group.add_argument('--input-key', metavar='KEY', help='column of the images in hfds/, hfids/ and wds/ data')
    group.add_argument('--target-key', metavar='KEY', help='column of the classes there')
    group.add_argument(
        '--train-num-samples', type=int, metavar='N',
        help='number of training images of a stream that does not state it')
    group.add_argument(
        '--val-num-samples', type=int, metavar='N', help='number of validation images of such a stream')
    group.add_argument(
        '--image-endings', nargs='+', metavar='END',
        help='what images of a folder or list end in; other files are counted and left out (default: of a folder '
             '.png .jpg .jpeg, of a list whatever it names)')
    group.add_argument('--class-map', default='', metavar='FILENAME', help='file that maps class to index')
    group.add_argument('--dataset-download', action='store_true', help='let torch/ and tfds/ data sets download')
    group.add_argument(
        '--max-image-pixels', type=int, metavar='N',
        help="pixels that an image may have (default: Pillow's 179 million; a larger one may be a trap)")
    group.add_argument(
        '--resident-data', action='store_true',
        help='read the training images once, keep them on the device; pad, crop and mirror them there '
             '(small sets, with --crop-padding or --no-aug, no other augmentation than --hflip)')


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Model')
    group.add_argument(
        '--model', default='resnet20_cifar', metavar='MODEL',
        help='any timm architecture or hf-hub:NAME (default: %(default)s)')
    group.add_argument(
        '--pretrained', action=argparse.BooleanOptionalAction, default=False,
        help='start from pretrained weights')
    group.add_argument('--pretrained-path', metavar='PATH', help='file with the pretrained weights')
    group.add_argument('--initial-checkpoint', default='', metavar='PATH', help='load the weights of this checkpoint')
    group.add_argument('--num-classes', type=int, metavar='N', help='number of classes (default: the data set\'s)')
    group.add_argument('--gp', metavar='POOL', help='global pool type: fast, avg, max, avgmax, avgmaxc')
    group.add_argument('--img-size', type=int, metavar='N', help='image size (default: the model\'s)')
    group.add_argument('--in-chans', type=int, metavar='N', help='image input channels')
    group.add_argument('--input-size', nargs=3, type=int, metavar='N', help='channels height width')
    group.add_argument('--crop-pct', type=float, metavar='N', help='input image centre crop, for validation')
    group.add_argument(
        '--crop-mode', choices=('center', 'squash', 'border'),
        help='validation images: center crop; squash, resize without keeping the aspect; border, pad '
             '(default: the model\'s). Training images are squashed by --crop-padding')
    group.add_argument('--mean', type=float, nargs='+', metavar='MEAN', help='mean of the pixels, to normalise')
    group.add_argument('--std', type=float, nargs='+', metavar='STD', help='deviation of the pixels, to normalise')
    group.add_argument(
        '--interpolation', default='', choices=('', 'nearest', 'bilinear', 'bicubic', 'lanczos'),
        help='image resize interpolation (default: the model\'s)')
    group.add_argument('--drop', type=float, default=0., metavar='P', help='dropout (default: %(default)s)')
    group.add_argument('--drop-path', type=float, metavar='P', help='stochastic depth')
    group.add_argument('--drop-block', type=float, metavar='P', help='drop whole blocks of features; a few networks')
    group.add_argument('--bn-momentum', type=float, metavar='F', help='of BatchNorm; EfficientNets and their kin')
    group.add_argument('--bn-eps', type=float, metavar='F', help='of BatchNorm; EfficientNets and their kin')
    group.add_argument(
        '--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
        help='further arguments of the model')


def _add_batches(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Batches and device')
    group.add_argument(
        '-b', '--batch-size', type=int, default=128, metavar='N',
        help='training batch size per process (default: %(default)s)')
    group.add_argument('-vb', '--validation-batch-size', type=int, metavar='N', help='default: --batch-size')
    group.add_argument(
        '--grad-accum-steps', type=int, default=1, metavar='N',
        help='forward/backward passes per optimiser step (default: %(default)s)')
    group.add_argument(
        '-j', '--workers', type=int, default=min(4, usable_cores()), metavar='N',
        help='data loading processes (default: 4, or the number of cores where that is less)')
    group.add_argument(
        '--worker-seeding', default='all', choices=('all', 'part'),
        help="which random numbers of a loading process are seeded anew (default: %(default)s)")
    group.add_argument('--pin-mem', action='store_true', help='pin CPU memory in the data loader')
    group.add_argument('--no-prefetcher', action='store_true', help='plain data loader')
    group.add_argument('--device', metavar='NAME', help='cuda, cpu, mps (default: cuda where there is one)')
    group.add_argument('--amp', action='store_true', help='automatic mixed precision')
    group.add_argument(
        '--amp-dtype', default='float16', choices=('float16', 'bfloat16'),
        help='lower precision AMP dtype (default: %(default)s)')
    group.add_argument('--channels-last', action='store_true', help='channels_last memory layout')
    group.add_argument('--grad-checkpointing', action='store_true', help='recompute activations, to save memory')
    group.add_argument(
        '--torchcompile', nargs='?', const='inductor', metavar='BACKEND',
        help='torch.compile the evaluation, and the training: with ICASC what comes before the inner layer')
    group.add_argument('--torchcompile-mode', metavar='MODE', help='mode of torch.compile')
    group.add_argument('--no-ddp-bb', action='store_true', help='do not broadcast buffers between processes')
    group.add_argument('--sync-bn', action='store_true', help='synchronised BatchNorm across processes')
    group.add_argument(
        '--dist-bn', default='reduce', choices=('reduce', 'broadcast', ''),
        help='share BatchNorm statistics between processes after each epoch (default: %(default)s)')


def _add_fine_tuning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Fine-tuning')
    group.add_argument(
        '--head-init-scale', type=float, metavar='F',
        help='multiply the first weights of the head; 0 lets it begin with equal scores')
    group.add_argument('--head-init-bias', type=float, metavar='B', help='first value of the head\'s biases')
    group.add_argument(
        '--head-lr-scale', type=float, metavar='F',
        help='learning rate of the classifier, as a multiple of that of the rest')
    group.add_argument(
        '--freeze-until', default='', metavar='PATH',
        help='do not train what comes before this module, e.g. layer4, or fc to train the head alone; its '
             'BatchNorm keeps its statistics')
    group.add_argument(
        '--layer-decay', type=float, metavar='DECAY',
        help='learning rate of each layer, as a multiple of that of the layer after it')
    group.add_argument(
        '--layer-decay-min-scale', type=float, default=0., metavar='F',
        help='least factor of --layer-decay (default: %(default)s)')
    group.add_argument(
        '--layer-decay-no-opt-scale', type=float, metavar='F',
        help='do not train layers whose factor would be less')


def _add_loss(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Loss')
    group.add_argument(
        '--loss', default='ce', choices=('ce', 'bce', 'asl', 'poly'), metavar='LOSS',
        help='classification loss: ce, bce, asl, poly (default: %(default)s); multi-label data take the '
             'multi-label soft-margin loss')
    group.add_argument(
        '--smoothing', type=float, default=0.1,
        help='label smoothing (default: %(default)s); single-label data only')
    group.add_argument(
        '--class-weights', metavar='balanced|FILE',
        help="weights of the classes in this loss, not in the ICASC terms: 'balanced', against their frequency, or a "
             'CSV with the columns class,weight (default: none)')
    group.add_argument('--bce-target-thresh', type=float, metavar='F', help='with --loss bce: targets above it are 1')
    group.add_argument('--bce-sum', action='store_true', help='with --loss bce: sum over the classes, no mean')
    group.add_argument('--bce-pos-weight', type=float, metavar='F', help='with --loss bce: weight of the true classes')


def _add_optimizer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Optimizer')
    group.add_argument('--opt', default='sgd', metavar='OPTIMIZER', help='any timm optimiser (default: %(default)s)')
    group.add_argument('--opt-eps', type=float, metavar='EPSILON')
    group.add_argument('--opt-betas', type=float, nargs='+', metavar='BETA')
    group.add_argument('--momentum', type=float, default=0.9, metavar='M', help='default: %(default)s')
    group.add_argument('--weight-decay', type=float, default=2e-5, help='default: %(default)s')
    group.add_argument('--clip-grad', type=float, metavar='NORM', help='clip gradients (default: do not)')
    group.add_argument('--clip-mode', default='norm', choices=('norm', 'value', 'agc'), help='default: %(default)s')
    group.add_argument(
        '--opt-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
        help='further arguments of the optimiser')

    group = parser.add_argument_group('Learning rate')
    group.add_argument('--sched', default='cosine', metavar='SCHEDULER', help='default: %(default)s')
    group.add_argument('--sched-on-updates', action='store_true', help='step the schedule on updates, not on epochs')
    group.add_argument('--lr', type=float, metavar='LR', help='learning rate; overrides --lr-base')
    group.add_argument(
        '--lr-base', type=float, default=0.1, metavar='LR',
        help='learning rate = lr_base * global batch size / lr_base_size (default: %(default)s)')
    group.add_argument('--lr-base-size', type=int, default=256, metavar='N', help='default: %(default)s')
    group.add_argument(
        '--lr-base-scale', default='linear', choices=('linear', 'sqrt'),
        help='how it grows with the batch size (default: %(default)s)')
    group.add_argument(
        '--lr-noise', type=float, nargs='+', metavar='F', help='noise on the rate from this share of the epochs on')
    group.add_argument('--lr-noise-pct', type=float, default=0.67, metavar='F', help='its limit (default: %(default)s)')
    group.add_argument('--lr-noise-std', type=float, default=1., metavar='F', help='default: %(default)s')
    group.add_argument(
        '--lr-k-decay', type=float, default=1., metavar='K', help='k-decay of cosine and poly (default: %(default)s)')
    group.add_argument('--epochs', type=int, default=300, metavar='N', help='number of epochs (default: %(default)s)')
    group.add_argument('--warmup-epochs', type=int, default=5, metavar='N', help='default: %(default)s')
    group.add_argument('--warmup-prefix', action='store_true', help='begin the schedule after the warm-up')
    group.add_argument('--warmup-lr', type=float, default=1e-5, metavar='LR', help='default: %(default)s')
    group.add_argument('--min-lr', type=float, default=0., metavar='LR', help='default: %(default)s')
    group.add_argument('--cooldown-epochs', type=int, default=0, metavar='N', help='default: %(default)s')
    group.add_argument('--decay-epochs', type=float, default=90., metavar='N', help='default: %(default)s')
    group.add_argument('--decay-milestones', type=int, nargs='+', default=[90, 180, 270], metavar='EPOCH')
    group.add_argument(
        '--patience-epochs', type=int, default=10, metavar='N',
        help='epochs without progress before --sched plateau lowers the rate (default: %(default)s)')
    group.add_argument('--decay-rate', '--dr', type=float, default=0.1, metavar='RATE', help='default: %(default)s')
    group.add_argument('--lr-cycle-mul', type=float, default=1., metavar='MULT', help='default: %(default)s')
    group.add_argument('--lr-cycle-decay', type=float, default=0.5, metavar='MULT', help='default: %(default)s')
    group.add_argument('--lr-cycle-limit', type=int, default=1, metavar='N', help='default: %(default)s')


def _add_augmentation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Augmentation')
    group.add_argument(
        '--no-aug', action='store_true',
        help='no training augmentation: images are resized to the input, whatever their shape')
    group.add_argument(
        '--crop-padding', type=int, metavar='N',
        help='pad by N zeros and crop at random, as the CIFAR protocols do, not random resized crop')
    group.add_argument('--train-crop-mode', choices=('rrc', 'rkrc', 'rkrr'), help='timm\'s crop modes (default: rrc)')
    group.add_argument('--scale', type=float, nargs=2, default=[0.08, 1.0], metavar='PCT', help='default: 0.08 1.0')
    group.add_argument('--ratio', type=float, nargs=2, default=[3 / 4, 4 / 3], metavar='R', help='default: 0.75 1.33')
    group.add_argument('--hflip', type=float, default=0.5, metavar='P', help='horizontal flips (default: %(default)s)')
    group.add_argument('--vflip', type=float, default=0., metavar='P', help='vertical flips (default: %(default)s)')
    group.add_argument(
        '--color-jitter-prob', type=float, metavar='P', help='share of the images with colour jitter (default: all)')
    group.add_argument('--grayscale-prob', type=float, metavar='P', help='make images grey (default: none)')
    group.add_argument('--gaussian-blur-prob', type=float, metavar='P', help='blur images (default: none)')
    group.add_argument('--color-jitter', type=float, default=0.4, metavar='F', help='default: %(default)s')
    group.add_argument('--aa', metavar='NAME', help='AutoAugment policy, e.g. rand-m9-mstd0.5-inc1')
    group.add_argument(
        '--train-interpolation', default='random', help='default: %(default)s',
        choices=('random', 'nearest', 'bilinear', 'bicubic', 'lanczos'))
    group.add_argument('--reprob', type=float, default=0., metavar='P', help='random erasing (default: %(default)s)')
    group.add_argument(
        '--remode', default='pixel', choices=('const', 'rand', 'pixel'),
        help='random erasing mode (default: %(default)s)')
    group.add_argument('--recount', type=int, default=1, metavar='N', help='erased areas (default: %(default)s)')
    group.add_argument(
        '--aug-repeats', type=int, default=0, metavar='N',
        help='augment each drawn image N times in different processes (torchrun); an epoch is as long as without, but '
             'for what is left of 256 images')
    group.add_argument('--mixup', type=float, default=0., metavar='ALPHA', help='mixup if > 0')
    group.add_argument('--cutmix', type=float, default=0., metavar='ALPHA', help='cutmix if > 0')
    group.add_argument(
        '--cutmix-minmax', type=float, nargs=2, metavar=('MIN', 'MAX'),
        help='share of the sides that cutmix cuts, instead of a draw by its alpha')
    group.add_argument('--mixup-prob', type=float, default=1., metavar='P', help='default: %(default)s')
    group.add_argument('--mixup-switch-prob', type=float, default=0.5, metavar='P', help='default: %(default)s')
    group.add_argument('--mixup-mode', default='batch', choices=('batch', 'pair', 'elem'), help='default: %(default)s')
    group.add_argument('--mixup-off-epoch', type=int, default=0, metavar='N', help='no mixup after the first N epochs')

    group = parser.add_argument_group('Average of the weights')
    group.add_argument('--model-ema', action='store_true', help='track an average of the weights, and evaluate it')
    group.add_argument('--model-ema-decay', type=float, default=0.9998, help='default: %(default)s')
    group.add_argument('--model-ema-warmup', action='store_true', help='warm up the decay')


def _add_icasc(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        'ICASC',
        'loss = cross-entropy + w1 L_AS_inner + w2 L_AS_last + w3 L_AC (Eq. 6). A weight of 0 leaves the term out.')
    group.add_argument(
        '--icasc', action=argparse.BooleanOptionalAction, default=True,
        help='train with ICASC, or with the classification loss alone (default: with)')
    group.add_argument(
        '--icasc-compare', action='store_true',
        help='train both, the plain loss first, with the same seed, and print them side by side')
    methods = trainable_methods()
    group.add_argument(
        '--icasc-attention', default=ICASCConfig.attention, choices=list(methods),
        help=f"attention maps: {', '.join(method.title for method in methods.values())} (default: %(default)s)")
    group.add_argument(
        '--icasc-order', type=int, default=ICASCConfig.order, choices=(1, 2),
        help='1: channel weights are constants (cheaper); 2: they carry gradient. The paper leaves it open; the '
             'derivative of its formula as printed is 2 with --icasc-mask-grad (default: %(default)s)')
    group.add_argument(
        '--icasc-layers', nargs=2, metavar=('INNER', 'LAST'),
        help='module paths of the two layers (default: found from the model); PATH:NLC+5 states a layout too')
    group.add_argument(
        '--icasc-weights', type=float, nargs=len(TERMS), metavar=tuple(term.name.upper() for term in TERMS),
        help='weights of the terms (default: 1 1 1; where images have several classes 0.03 0.03 '
             '0.03, since larger ones cost average precision)')
    group.add_argument(
        '--icasc-start-epoch', type=float, default=0., metavar='N',
        help='epochs of plain training before the terms set in (default: %(default)s)')
    group.add_argument(
        '--icasc-ramp-epochs', type=float, default=0., metavar='N',
        help='epochs over which the terms then grow to their weights (default: %(default)s)')
    group.add_argument(
        '--icasc-theta', type=float, default=ICASCConfig.theta, help='offset of L_AC, Eq. 5 (default: %(default)s)')
    group.add_argument(
        '--icasc-sigma', type=float, default=ICASCConfig.sigma,
        help='mask threshold, fraction of the maximum, Eq. 4 (default: %(default)s)')
    group.add_argument(
        '--icasc-omega', type=float, default=ICASCConfig.omega, help='mask steepness, Eq. 4 (default: %(default)s)')
    group.add_argument(
        '--icasc-mask-scale', default=ICASCConfig.mask_scale, choices=MASK_SCALES,
        help='divide the map by its maximum in the mask, or take it raw (default: %(default)s)')
    group.add_argument(
        '--icasc-mask-grad', action=argparse.BooleanOptionalAction, default=ICASCConfig.mask_grad,
        help='let the mask carry gradient (default: it is a pseudo-label; the paper leaves it open)')
    group.add_argument(
        '--icasc-multilabel-maps', default=ICASCConfig.multilabel_maps, choices=MULTILABEL_MAPS,
        help='where images have several classes: one joint map of an image, or one per class, at a backward '
             'pass for each class of the fullest image; the paper leaves it open (default: %(default)s)')
    group.add_argument(
        '--icasc-rival', default=ICASCConfig.rival, choices=RIVALS,
        help="class that the true one's map is pushed apart from; random is a control (default: %(default)s)")
    group.add_argument(
        '--icasc-share', type=float, default=ICASCConfig.share, metavar='P',
        help='compute the terms on the most confused share of the batch only, which runs twice: with order 2 '
             'cheaper below about 0.5, with order 1 below 0.25 (default: 1)')
    group.add_argument('--icasc-defects', nargs='+', default=[], choices=tuple(DEFECTS), help=argparse.SUPPRESS)
    group.add_argument(
        '--icasc-fast', action=argparse.BooleanOptionalAction, default=False,
        help='record the forward and backward pass as a CUDA graph after some steps, and replay it: for '
             'small networks, which wait for the launch of their kernels; one GPU (default: do not)')
    group.add_argument(
        '--icasc-eval-images', type=int, default=500, metavar='N',
        help='validation images whose attention is measured after each epoch; 0: none (default: %(default)s)')


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Run: its folder, how it goes on, what is best')
    group.add_argument(
        '--output', default='output', metavar='PATH',
        help='folder of all runs (default: %(default)s)')
    group.add_argument(
        '--experiment', default='', metavar='NAME',
        help='name of this run\'s folder (default: MODEL-DATA, numbered)')
    group.add_argument(
        '--resume', default='', metavar='PATH',
        help="checkpoint to go on from, with the arguments of its run, in its folder unless --output or --experiment "
             "names another; 'auto': the newest run in --output, or that in --output/--experiment; where there is "
             'none, nothing is trained')
    group.add_argument(
        '--checkpoint-hist', type=int, default=2, metavar='N',
        help='number of checkpoints to keep (default: %(default)s)')
    group.add_argument(
        '--patience', type=int, metavar='N',
        help='stop when --eval-metric has not become better for N epochs (default: do not)')
    group.add_argument(
        '--val-interval', type=int, default=1, metavar='N',
        help='validate the first epoch, every N-th after it, and the last one (default: %(default)s)')
    group.add_argument(
        '--eval-metric', choices=(*SINGLE.eval_metrics, *MULTI.eval_metrics, 'loss'),
        help='what makes a checkpoint the best (default: top1, of multi-label data mAP)')
    group.add_argument(
        '--log-interval', type=int, default=50, metavar='N',
        help='steps between checks for a finite loss on a GPU (default: %(default)s)')
    group.add_argument('--seed', type=int, default=42, metavar='S', help='random seed (default: %(default)s)')


def _add_logging(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        'Logging', "Numbers of every epoch, and maps of six validation images: pip install 'timm_icasc[log]'.")
    group.add_argument('--log-tensorboard', action='store_true', help='to tensorboard/ in the folder of the run')
    group.add_argument('--log-wandb', action='store_true', help='to Weights & Biases, which shows them to its readers')
    group.add_argument('--wandb-project', metavar='NAME', help='its project there')
    group.add_argument('--wandb-tags', nargs='+', default=[], metavar='TAG', help='tags of the run there')
    group.add_argument(
        '--wandb-resume-id', default='', metavar='ID',
        help='run there to resume (default: that of the resumed run)')


def _add_publishing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('Publishing')
    group.add_argument(
        '--push-to-hub', default='', metavar='OWNER/NAME',
        help='publish the finished run on the Hugging Face Hub, as timm-icasc push does: with its figure '
             'of validation images only where the data set is a public one. Token and license are checked '
             'before training. Give it on the command line: no --config file or resumed run turns it on')
    group.add_argument(
        '--license', metavar='ID',
        help='license of the published weights, e.g. cc-by-nc-4.0 (default: that of the weights the run '
             'starts from; apache-2.0 where it starts from none)')


# In the order of --help.
GROUPS = (
    _add_icasc, _add_data, _add_model, _add_fine_tuning, _add_loss, _add_batches, _add_optimizer,
    _add_augmentation, _add_run, _add_logging, _add_publishing)
