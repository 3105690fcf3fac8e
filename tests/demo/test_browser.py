"""Slow: the page of `timm-icasc demo` in a real browser, headless Chromium, driven by its own DevTools protocol."""
import json
import shutil
import subprocess
import time
import urllib.request

import pytest
from helpers.bright import BrightNet, square_image

from timm_icasc.demo import page
from timm_icasc.explanation import Explainer

pytestmark = pytest.mark.slow

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
SHOWN = (
    "[...document.querySelectorAll('img')].filter("
    "i => i.complete && i.naturalWidth >= 90 && !i.src.includes('.svg')).length")


class Tab:
    """A tab of a browser: commands, and what it has told since."""

    def __init__(self, address):
        from websockets.sync.client import connect
        self.socket = connect(address, max_size=2 ** 27)
        self.number, self.events = 0, []
        for domain in ('Page', 'Runtime', 'Log', 'Network', 'DOM'):
            self.send(f'{domain}.enable')

    def send(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({'id': self.number, 'method': method, 'params': parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=120))
            if answer.get('id') == self.number:
                assert 'error' not in answer, answer
                return answer['result']
            self.events.append(answer)

    def value(self, code):
        return self.send('Runtime.evaluate', expression=code, returnByValue=True)['result'].get('value')

    def until(self, code, seconds=180):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.value(code):
                return
            self.send('Runtime.evaluate', expression='new Promise(r => setTimeout(r, 300))', awaitPromise=True)
        raise AssertionError(f'{code} is still false; the page says:\n{self.value("document.body.innerText")}')

    def told(self, *methods):
        return [event['params'] for event in self.events if event['method'] in methods]


@pytest.fixture
def tab(tmp_path):
    pytest.importorskip('gradio')
    pytest.importorskip('websockets')
    browser = next(filter(None, map(shutil.which, BROWSERS)), None) or pytest.skip(f"none of {', '.join(BROWSERS)}")
    process = subprocess.Popen(
        [browser, '--headless=new', '--no-sandbox', '--disable-gpu', '--remote-debugging-port=0', '--no-first-run',
         '--disable-background-networking', f'--user-data-dir={tmp_path / "profile"}', 'about:blank'],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        port = next(line for line in process.stderr if 'DevTools listening' in line).split(':')[-1].split('/')[0]
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/json') as tabs:
            address = next(tab for tab in json.load(tabs) if tab['type'] == 'page')['webSocketDebuggerUrl']
        yield Tab(address)
    finally:
        process.terminate()
        process.communicate()


def test_an_uploaded_image_is_explained(tab, tmp_path):
    """Both models' overlays come up, with classes and scores; no error on the console, no request to elsewhere."""
    import gradio
    square_image((120, 90), (30, 20, 60, 50)).save(tmp_path / 'square.png')
    explainers = [
        Explainer(BrightNet(crop_mode=mode), ['bright', 'dark'], label=f'model-{mode}')
        for mode in ('center', 'squash')]
    _, address, _ = page.launch_page(explainers, prevent_thread_lock=True, quiet=True)
    try:
        tab.send('Page.navigate', url=address)
        tab.until("document.querySelector('input[type=file]') && document.body.innerText.includes('model-squash')")
        before = tab.value(SHOWN)
        root = tab.send('DOM.getDocument', depth=-1)['root']['nodeId']
        field = tab.send('DOM.querySelector', nodeId=root, selector='input[type=file]')['nodeId']
        tab.send('DOM.setFileInputFiles', files=[str(tmp_path / 'square.png')], nodeId=field)
        tab.until(f'{SHOWN} >= {before} + 5')  # the image, and of each model the maps of two classes
        text = tab.value('document.body.innerText')
        assert 'bright' in text and '%' in text
    finally:
        gradio.close_all(verbose=False)
    failures = tab.told('Runtime.exceptionThrown') + [
        told for told in tab.told('Runtime.consoleAPICalled') if told['type'] == 'error'] + [
        told for told in tab.told('Log.entryAdded') if told['entry']['level'] == 'error']
    assert not failures
    asked = [told['request']['url'] for told in tab.told('Network.requestWillBeSent')]
    assert all(url.startswith((address, 'data:', 'blob:')) for url in asked), 'nothing is asked of other machines'
