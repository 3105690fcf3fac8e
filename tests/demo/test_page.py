"""The page of `timm-icasc demo`: its function and, where Gradio is installed, its client."""
import importlib

import numpy as np
import pytest
from helpers.bright import BrightNet, square_image
from helpers.runs import make_run

from timm_icasc import ICASCError, TargetError, explain
from timm_icasc.cli import main
from timm_icasc.demo import page
from timm_icasc.explanation import Explainer
from timm_icasc.explanation.class_names import find_classes


@pytest.fixture
def explainers():
    return [Explainer(BrightNet(crop_mode=mode), ['bright', '*dark*'], label=mode) for mode in ('center', 'squash')]


IMAGE = square_image((90, 60), (30, 20, 45, 35))


def test_overlays_scores_and_overlaps_of_both_models(explainers):
    shown = page.explain_upload(explainers, IMAGE, [], 2, 'ach', 'inner')
    assert len(shown) == 2
    for (pictures, scores, overlaps), mode in zip(shown, ('center', 'squash'), strict=True):
        expected = explain(
            BrightNet(crop_mode=mode), IMAGE, topk=2, method='ach', layer='inner', class_names=['bright', '*dark*'])
        assert [caption for _, caption in pictures] == [
            f'{name} {score:.1%}' for name, score in zip(expected.class_names, expected.scores, strict=True)]
        assert np.array_equal(np.asarray(pictures[0][0]), np.asarray(expected.overlay(0, page.SIDE)))
        assert scores == {
            name: pytest.approx(expected.probabilities[c].item()) for c, name in enumerate(['bright', '*dark*'])}
        assert f'{expected.overlap():.4f}'[:4] in overlaps and '\\*dark' in overlaps


def test_classes_that_are_picked(explainers):
    (pictures, _, overlaps), _ = page.explain_upload(explainers, IMAGE, ['*dark*'], 2, 'grad_cam', 'last')
    assert [caption.partition(' ')[0] for _, caption in pictures] == ['*dark*'] and overlaps == ''
    with pytest.raises(TargetError, match="no class 'cat'"):
        page.explain_upload(explainers, IMAGE, ['cat'], 2, 'grad_cam', 'last')
    with pytest.raises(ICASCError, match='Upload an image first'):
        page.explain_upload(explainers, None, [], 2, 'grad_cam', 'last')


def test_classes_of_one_name_are_told_apart_by_number():
    explainer = Explainer(BrightNet(), ['crane', 'crane'])
    assert page._choices([explainer]) == [('crane (0)', 0), ('crane (1)', 1)]
    assert page._choices([Explainer(BrightNet(), ['crane', 'Crane'])]) == [('crane (0)', 0), ('Crane (1)', 1)]
    others = [Explainer(BrightNet(), ['crane', 'crane', 'dog'][n:][:2]) for n in (0, 1)]
    assert page._choices(others) == []  # no name, and no number, is the same of both
    (pictures, scores, overlaps), = page.explain_upload([explainer], IMAGE, [], 2, 'ach', 'last')
    assert sorted(scores) == ['crane (0)', 'crane (1)'] and sum(scores.values()) == pytest.approx(1)
    assert sorted(caption[:9] for _, caption in pictures) == sorted(scores)
    assert all(name in overlaps for name in scores)


def test_a_number_is_not_the_class_of_that_name():
    """Of letters in both cases, told apart by number, '0' meant the digit."""
    names = ['A', 'a', '0']
    picked = [value for _, value in page._choices([Explainer(BrightNet(), names)])]
    assert [find_classes(value, names) for value in picked] == [[0], [1], [2]]


def test_without_gradio_one_line_names_the_extra(monkeypatch, tmp_path, capsys):
    real = importlib.import_module

    def without(name, *args):
        if name == 'gradio':
            raise ImportError(name)
        return real(name, *args)
    monkeypatch.setattr(page.importlib, 'import_module', without)
    assert main(['demo', str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "timm-icasc demo: error: the page needs Gradio: pip install 'timm_icasc[demo]'.\n")


class TestWithGradio:
    @pytest.fixture(autouse=True)
    def gradio(self):
        pytest.importorskip('gradio')

    def test_its_own_client_gets_what_the_function_gives(self, explainers, tmp_path):
        client = pytest.importorskip('gradio_client')
        IMAGE.save(tmp_path / 'x.png')
        _, address, _ = page.launch_page(explainers, prevent_thread_lock=True, quiet=True)
        try:
            api = client.Client(address, verbose=False)
            gallery, scores, overlaps, *second = api.predict(
                client.handle_file(str(tmp_path / 'x.png')), [], 2, 'grad_cam', 'last', api_name='/explain')
        finally:
            import gradio
            gradio.close_all(verbose=False)
        expected, other = page.explain_upload(explainers, IMAGE, [], 2, 'grad_cam', 'last')
        assert [entry['caption'] for entry in gallery] == [caption for _, caption in expected[0]]
        assert [entry['caption'] for entry in second[0]] == [caption for _, caption in other[0]]
        assert scores['label'] == max(expected[1], key=expected[1].get) and overlaps == expected[2]

    def test_what_is_refused_is_a_line_for_the_client_alone(self, explainers, tmp_path, capfd):
        client = pytest.importorskip('gradio_client')
        IMAGE.save(tmp_path / 'x.png')
        _, address, _ = page.launch_page(explainers, prevent_thread_lock=True, quiet=True)
        try:
            api = client.Client(address, verbose=False)
            with pytest.raises(Exception, match="no layer 'nowhere'"):
                api.predict(
                    client.handle_file(str(tmp_path / 'x.png')), [], 2, 'grad_cam', 'nowhere', api_name='/explain')
        finally:
            import gradio
            gradio.close_all(verbose=False)
        assert 'Traceback' not in capfd.readouterr().err

    def test_the_command_serves_runs(self, tmp_path, monkeypatch):
        runs = [make_run(tmp_path / name) for name in ('a', 'b')]
        served = []
        monkeypatch.setattr(page, 'build_page', lambda explainers: served.extend(explainers) or _Page())
        assert main(['demo', *map(str, runs), '--port', '7999']) == 0
        assert [explainer.label for explainer in served] == ['a', 'b']
        assert _Page.launched['server_name'] == '127.0.0.1' and _Page.launched['server_port'] == 7999
        assert _Page.launched['share'] is False
        assert main(['demo', *map(str, runs * 2)]) == 2


class _Page:
    launched = None

    def launch(self, **kwargs):
        _Page.launched = kwargs
