"The playground in a real browser: headless Chromium, driven by Playwright."
import json, os, re, shutil, signal, subprocess, sys, threading, time
from urllib.request import urlopen
import pytest, torch
from PIL import Image
from conftest import make_codec
pytest.importorskip('gradio')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)

def make_pipe(folder, unet=None, **kw):
    "A pipeline that samples something, in 4x4 latents"
    from latentfast.autoencoder import LatentCodec
    from latentfast.pipeline import LatentDiffusionPipeline
    from latentfast.schedule import diffusers_scheduler
    from latentfast.unet import LatentUNet
    codec = LatentCodec.from_pretrained(str(make_codec(folder)))
    torch.manual_seed(0)
    unet = LatentUNet(nfs=(16,32), attn_levels=(), sample_size=4, **(unet or {}))
    for p in unet.parameters(): p.data.add_(.05*torch.randn_like(p))
    preview = torch.randn(4,3).tolist(), [0.,0.,0.]
    return LatentDiffusionPipeline(unet, codec.model, diffusers_scheduler(), latent_shape=[4,4,4], objective='v', codec_fingerprint=codec.fingerprint, preview=list(preview), **kw)

@pytest.fixture(scope='module')
def page(tmp_path_factory):
    from latentfast.classifier import LatentClassifier
    from latentfast.play import play
    torch.manual_seed(0)
    clf = LatentClassifier(nfs=(8,16), n_blocks=(1,), n_classes=3)
    clf.register_to_config(classes=['cube','cone','sphere'])
    page = play(make_pipe(tmp_path_factory.mktemp('pipe')), clf, prevent_thread_lock=True, quiet=True)
    yield page
    page.close(verbose=False)

def test_it_answers_this_machine_alone_and_sends_nothing_home(page):
    assert page.local_url.startswith('http://127.0.0.1:') and page.server_name=='127.0.0.1' and not page.share and page.share_url is None
    assert not page.analytics_enabled and os.environ['GRADIO_ANALYTICS_ENABLED']=='False'

@pytest.fixture(scope='module')
def chromium():
    if not CHROMIUM: pytest.skip('there is no Chromium on this machine')
    sync = pytest.importorskip('playwright.sync_api')
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()

@pytest.mark.parametrize('scheme', ['light','dark'])
@pytest.mark.parametrize('size', [(390,844),(1440,900)], ids=['phone','desk'])
def test_the_page(page, chromium, size, scheme, tmp_path):
    at = chromium.new_page(viewport=dict(width=size[0], height=size[1]), color_scheme=scheme)
    wrong, asked = [], []
    at.on('console', lambda m: wrong.append(m.text) if m.type=='error' else None); at.on('pageerror', lambda e: wrong.append(str(e)))
    at.on('request', lambda r: asked.append(r.url))
    at.goto(page.local_url)
    at.get_by_role('button', name='Sample', exact=True).wait_for()
    at.get_by_text('Start from a picture').click()
    at.get_by_text('How much is made new').wait_for()
    def cut_off(): return at.evaluate('''() => [...document.querySelectorAll('.gradio-container *')].filter(e => e.checkVisibility() && e.getBoundingClientRect().width > 0 &&
        !e.closest('[class*=editor], [class*=canvas], canvas, svg, .options') && (e.getBoundingClientRect().right > innerWidth+1 || e.getBoundingClientRect().left < -1)).map(e => e.outerHTML.slice(0, 120))''')
    assert not cut_off() and at.evaluate('document.documentElement.scrollWidth <= innerWidth')
    light = at.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0,3).map(Number).reduce((a,b) => a+b) > 384")
    assert light==(scheme=='light')
    at.get_by_label('Seed').fill('7')
    at.get_by_role('button', name='Sample', exact=True).click()
    at.get_by_text('Seed 7, 15 steps of unipc').wait_for(timeout=60_000)
    picture = at.locator('img[src*="/file="]').first
    picture.scroll_into_view_if_needed()
    assert loaded(at, picture) and not cut_off()
    at.close()
    assert not wrong and all(u.startswith((page.local_url.rstrip('/'), 'data:', 'blob:')) for u in asked), (wrong, asked)

def loaded(at, picture):
    "Is the picture there, in ten seconds at the latest?"
    for _ in range(100):
        if picture.evaluate('e => e.complete && e.naturalWidth > 100'): return True
        at.wait_for_timeout(100)

def until_there(at, asked, what):
    "Press Sample until the page sends `what`: a picture takes its time to be uploaded and drawn"
    for _ in range(20):
        at.get_by_role('button', name='Sample', exact=True).click()
        for _ in range(300):
            if asked: break
            at.wait_for_timeout(100)
        if asked and what in (kw := asked.pop()): return kw  # while it still samples, pressing does nothing
        at.wait_for_timeout(1000)
    raise AssertionError(f'{what} was never sent')

def test_a_picture_of_ones_own_painted_on_a_class_and_stop(page, chromium, tmp_path, monkeypatch):
    import latentfast.play
    asked, real = [], latentfast.play.forming
    def forming(pipe, **kw): asked.append(kw); yield from real(pipe, **kw)
    monkeypatch.setattr(latentfast.play, 'forming', forming)
    Image.new('RGB', (90,60), 'red').save(tmp_path/'red.png')
    at = chromium.new_page(viewport=dict(width=1200, height=1200))
    at.goto(page.local_url)
    at.get_by_label('Class').click(); at.get_by_role('option', name='cone').click()
    at.get_by_text('Start from a picture').click()
    at.locator('canvas').first.wait_for(); at.wait_for_timeout(1000)  # a file that is given before the editor is there is lost
    at.locator('input[type=file]').first.set_input_files(tmp_path/'red.png')
    kw = until_there(at, asked, 'image')
    at.get_by_text('Seed 0, 15 steps of unipc').wait_for(timeout=60_000)
    assert kw['label']==1 and kw['classifier'] is not None and kw['strength']==.6 and 'mask_image' not in kw
    assert kw['image'].size==(32,32) and kw['image'].getpixel((16,16))[0]>240 and kw['image'].getpixel((16,16))[1]<20
    at.get_by_role('button', name='Brush', exact=True).click()
    box = at.locator('canvas').first.bounding_box(); x,y = box['x']+box['width']/2, box['y']+box['height']/2
    at.mouse.move(x-20, y); at.mouse.down(); at.mouse.move(x+20, y, steps=5); at.mouse.up()
    at.get_by_label('number input for Steps').fill('100'); at.get_by_label('number input for Steps').press('Tab')
    kw = until_there(at, asked, 'mask_image')
    at.get_by_text('of 100').wait_for(timeout=60_000)
    at.get_by_role('button', name='Stop').click()
    at.get_by_text('Stopped.').wait_for(timeout=60_000)
    assert 0 < sum(p>0 for p in kw['mask_image'].getdata()) < 32*32
    for _ in range(50):
        if not any(o.name=='forming' for o in threading.enumerate()): break
        time.sleep(.1)
    assert not any(o.name=='forming' for o in threading.enumerate())
    at.close()

def test_a_model_that_is_told_what_to_draw(chromium, tmp_path, monkeypatch):
    import latentfast.play
    asked, real = [], latentfast.play.forming
    def forming(pipe, **kw): asked.append(kw); yield from real(pipe, **kw)
    monkeypatch.setattr(latentfast.play, 'forming', forming)
    told = dict(n_classes=2, context_dim=32, words=['a','red','cube'], cond_channels=4)
    pipe = make_pipe(tmp_path/'pipe', told, classes=['cube','cone'], cond_picture=dict(mean=[0.]*4, std=[1.]*4, size=32))
    Image.new('RGB', (50,40), 'blue').save(tmp_path/'blue.png')
    page = latentfast.play.play(pipe, prevent_thread_lock=True, quiet=True)
    try:
        at = chromium.new_page(viewport=dict(width=1200, height=1200))
        at.goto(page.local_url)
        def go():
            at.get_by_role('button', name='Sample', exact=True).click()
            for _ in range(100):
                if asked and at.get_by_text('15 steps of unipc').count(): return asked.pop()
                at.wait_for_timeout(100)
            raise AssertionError(at.locator('.toast-body').all_inner_texts())
        at.get_by_label('And not').fill('cone')
        assert not {'prompt','negative_prompt','label','cond_image','guidance_scale'} & {*go()}
        at.get_by_label('Prompt').fill('a red cube'); at.get_by_label('Class').click(); at.get_by_role('option', name='cone').click()
        at.locator('input[type=file]').first.set_input_files(tmp_path/'blue.png')
        kw = until_there(at, asked, 'cond_image')
        assert (kw['prompt'], kw['negative_prompt'], kw['label'], kw['guidance_scale'])==('a red cube','cone',1,3) and kw['cond_image'].getpixel((5,5))[:3]==(0,0,255)
        at.get_by_label('Seed').fill('9'); at.get_by_label('Prompt').fill('a red <b>dog</b>')
        assert until_there(at, asked, 'cond_image')['seed']==9
        at.locator('.toast-body').filter(has_text="'a red <b>dog</b>' has words that no training caption has").wait_for()
        at.get_by_text('Seed 9, 15 steps of unipc').wait_for(timeout=60_000)
        assert loaded(at, at.locator('img[src*="/file="]').last)
    finally: page.close(verbose=False)

def test_what_is_wrong_is_said_on_the_page(page):
    from gradio_client import Client
    from gradio_client.exceptions import AppError
    with pytest.raises(AppError, match='lcm takes 1 to 50 steps'):
        Client(page.local_url, verbose=False).predict(-1, 3., 1, 0, 60, 'lcm', None, .6, api_name='/sample')

@pytest.mark.slow
def test_the_command_serves_the_page_until_it_is_interrupted(tmp_path):
    make_pipe(tmp_path/'codec').save_pretrained(tmp_path/'model')
    run = [sys.executable, '-u', '-c', 'import sys; from latentfast.cli import main; sys.exit(main())', 'play', tmp_path/'model', '--host', '0.0.0.0']
    server = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        port = next(m.group(1) for line in server.stdout if (m := re.search('http://0.0.0.0:([0-9]+)', line)))
        assert json.load(urlopen(f'http://127.0.0.1:{port}/config', timeout=30))['title']=='model'
        server.send_signal(signal.SIGINT)
        out,err = server.communicate(timeout=30)
        assert server.returncode in (0,130) and 'Traceback' not in err, err
    finally: server.kill(); server.wait()

def test_without_gradio_it_says_what_to_install(monkeypatch):
    import sys
    from latentfast.play import playground
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(ValueError, match=r'latentfast\[play\]'): playground(None)
