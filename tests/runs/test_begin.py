"""What a run writes before it trains."""
import yaml

from timm_icasc.runs.begin import save_args


def test_options_are_kept_below_the_command(tmp_path):
    save_args({'seed': 1, 'config': 'x', 'resume': 'auto', 'run_dir': 'y'}, tmp_path, 'train_timm.py --seed 1')
    text = (tmp_path / 'args.yaml').read_text()
    assert text.startswith('# train_timm.py --seed 1\n') and yaml.safe_load(text) == {'seed': 1}
