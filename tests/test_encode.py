"Encoding: what it finds, what it makes of odd and broken pictures, and that no interruption shows in the result"
import errno, io, json, os, shutil, signal, subprocess, sys, time, zlib
from copy import copy
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq, pytest, torch
from PIL import Image
import latentfast.encode as E
from latentfast.autoencoder import LatentCodec, to_tensor
from latentfast.encode import encode
from latentfast.sources import find_pictures, load_picture
from latentfast.store import LatentStore, read_index
from conftest import make_codec, make_pictures

ARGS = dict(size=32, batch_size=3, shard_rows=7, progress=False)
def content(folder): return {f.name: f.read_bytes() for f in Path(folder).iterdir()}
def errors(store): return {e['key']: e['error'] for e in map(json.loads, (store.path/'errors.jsonl').read_text().splitlines())}
def all_keys(store): return [d.keys(i) for d in (store.train, store.valid) for i in range(len(d))]

def listed(src, *args): ps = find_pictures(src, *args); return list(zip(ps.keys, ps.labels.tolist(), ps.splits))

def touch(root, *names):
    for n in names: (root/n).parent.mkdir(parents=True, exist_ok=True); (root/n).touch()
    return listed(root)

def smooth(h=48, w=64):
    y,x = np.mgrid[:h,:w]/np.array([h,w])[:,None,None]
    return Image.fromarray((np.stack([x, y, .5+.4*np.sin(6*x+4*y)], -1)*255).round().astype(np.uint8))

def saved(im, fmt, **kw): b = io.BytesIO(); im.save(b, fmt, **kw); b.seek(0); return b

# Broken pictures -----------------------------------------------------------------------------------------------------------------------

def break_some(src):
    "Ten broken files beside the good ones; gives their keys"
    rng, noise = np.random.default_rng(0), Image.fromarray(np.random.default_rng(0).integers(0, 256, (60,60,3), np.uint8))
    d = src/'cat'
    for fmt in ('png','jpg','webp','gif','bmp','tif'):
        raw = saved(noise, dict(jpg='JPEG', tif='TIFF').get(fmt, fmt)).getvalue(); (d/f'cut.{fmt}').write_bytes(raw[:len(raw)*6//10])
    (d/'empty.jpg').touch(); (d/'text.png').write_text('<html>404</html>'); (d/'noise.jpg').write_bytes(b'\xff\xd8\xff'+rng.bytes(500))
    raw = bytearray(saved(noise, 'PNG').getvalue()); raw[16:24] = (30_000).to_bytes(4, 'big')*2
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, 'big')
    (d/'bomb.png').write_bytes(raw)
    os.symlink(src/'nowhere.png', d/'link.png')
    return {f'cat/{n}' for n in ('cut.png','cut.jpg','cut.webp','cut.gif','cut.bmp','cut.tif','empty.jpg','text.png','noise.jpg','bomb.png',
                                 'link.png')}

def test_broken(pictures, codec, tmp_path):
    whole = encode(pictures, tmp_path/'whole', codec, **ARGS)
    bad = break_some(pictures)
    store = encode(pictures, tmp_path/'store', codec, **ARGS)
    e = errors(store)
    assert set(e)==bad and store.index['errors']['rows']==len(bad) and store.problems()==[] and '; 11 could not be used' in repr(store)
    assert len(store.train)+len(store.valid)+len(bad)==len(find_pictures(pictures))==24+11
    for key,why in (('bomb.png','Bomb'), ('link.png','vanished'), ('text.png','not a picture'), ('cut.jpg','truncated')):
        assert why in e[f'cat/{key}']
    assert sorted(all_keys(store))==sorted(all_keys(whole)) and errors(whole)=={}
    assert not any(str(tmp_path) in v for v in e.values())

def test_broken_links(codec, tmp_path, capsys):
    "Rows of img2dataset's without a picture are told from pictures that can't be used"
    status = ['success','failed_to_download','success','failed_to_resize']*6
    cells = [saved(smooth(), 'PNG').getvalue() if s=='success' else None for s in status]; cells[0] = b'no picture'
    pq.write_table(pa.table(dict(jpg=cells, status=status, key=[f'{i:02d}' for i in range(24)])), tmp_path/'p.parquet')
    store = encode(tmp_path/'p.parquet', tmp_path/'store', codec, **ARGS|dict(progress=True))
    assert store.index['missing']==12 and list(errors(store))==['p.parquet/00'] and sum(store.index['counts'].values())==11
    assert '12 rows of' in capsys.readouterr().out and E.encode_cost(tmp_path/'p.parquet', codec, size=32)['missing']==12

def test_vanishing(pictures, codec, tmp_path, monkeypatch):
    "A picture that is deleted after it was listed"
    find = E.find_pictures
    def found(*args, **kw): out = find(*args, **kw); os.unlink(pictures/out.keys[3]); return out
    monkeypatch.setattr(E, 'find_pictures', found)
    store = encode(pictures, tmp_path/'store', codec, **ARGS)
    assert list(errors(store).values())==['FileNotFoundError: the file has vanished'] and len(store.train)+len(store.valid)==23

@pytest.mark.parametrize('error', [OSError(errno.EMFILE, 'Too many open files'), MemoryError('no memory')], ids=['files','memory'])
def test_not_the_pictures_fault(pictures, codec, tmp_path, monkeypatch, error):
    "An open-file limit, a lost disk or no memory stops the run and isn't blamed on pictures; the same call goes on later"
    load, n = E.load_picture, iter(range(100))
    def failing(*args, **kw):
        if next(n)>12: raise error
        return load(*args, **kw)
    monkeypatch.setattr(E, 'load_picture', failing)
    with pytest.raises(type(error), match=str(error)[-8:]): encode(pictures, tmp_path/'a', codec, **ARGS, workers=1)
    monkeypatch.setattr(E, 'load_picture', load)
    encode(pictures, tmp_path/'a', codec, **ARGS); encode(pictures, tmp_path/'b', codec, **ARGS)
    assert content(tmp_path/'a')==content(tmp_path/'b')

@pytest.mark.parametrize('ahead', [0,1,3,50])
def test_decoding_ahead(pictures, ahead):
    "However far ahead the threads are, batches come in order; leaving early ends the threads"
    ps = find_pictures(pictures); batches = [list(range(24))[i:i+5] for i in range(0, 24, 5)]
    job = E._Job(ps, None, None, dict(size=8, crop='center', max_pixels=10**6, seed=0), None, 3)
    out = list(E._decoded(job, batches, ahead, chunk=2))
    assert [b for b,_ in out]==batches
    assert all((a==load_picture(ps.open(i), 8)).all() for b,arrays in out for i,a in zip(b, arrays, strict=True))
    stream = E._decoded(job, batches, ahead); next(stream); stream.close()

def test_all_broken(tmp_path, codec):
    "Nothing usable is an error, and leaves the folder free; once the pictures are mended the same call works"
    src = tmp_path/'p'; touch(src, 'a/1.png', 'a/2.png', 'b/3.png')
    with pytest.raises(ValueError, match='Not one training picture.*such as a/'): encode(src, tmp_path/'s', codec, **ARGS)
    assert not [*(tmp_path/'s').iterdir()]
    for f in src.rglob('*.png'): smooth().save(f)
    assert len(encode(src, tmp_path/'s', codec, **ARGS).train)==3

# What comes out ------------------------------------------------------------------------------------------------------------------------

def test_latents(pictures, codec, tmp_path):
    "They are the codec's, in the order of the keys, with the right labels and splits"
    store = encode(pictures, tmp_path/'s', codec, **ARGS, precision='fp32', valid_pct=.3)
    ps = find_pictures(pictures, .3)
    assert store.classes==ps.classes==['cat','dog'] and store.image_size==32 and store.latent_shape==(4,4,4)
    assert store.fingerprint==codec.fingerprint
    for split,ds in (('train',store.train), ('valid',store.valid)):
        rows = [i for i in range(len(ps)) if ps.splits[i]==split]
        z,y = ds.__getitems__(range(len(ds)))
        assert [ds.keys(i) for i in range(len(ds))]==[ps.keys[i] for i in rows] and y.tolist()==[ps.labels[i] for i in rows]
        want = codec.encode(to_tensor([load_picture(ps.open(i), 32) for i in rows]))
        assert (z-want).abs().max() < 2e-3*want.abs().max()
    assert all(s['rows']<=7 for s in store.index['shards']) and len(store.index['shards'])>3
    store.check_codec(codec)
    half = encode(pictures, tmp_path/'b', codec, **ARGS, precision='bf16', valid_pct=.3)
    assert (half.train.gather([0,1]).float()-store.train.gather([0,1]).float()).abs().max()<.05*want.std()

def test_flip_moments_int8(pictures, codec, tmp_path):
    "Mirrored latents are those of the mirrored pictures, deviations are the posterior's, int8 is near float16; an interrupted run equals an unbroken one"
    kw = dict(ARGS, precision='fp32', valid_pct=0); rich = dict(kw, flip=True, moments=True, dtype='int8')
    plain = encode(pictures, tmp_path/'p', codec, **kw).train; flip = encode(pictures, tmp_path/'f', codec, **kw, flip=True, moments=True).train
    for d in sorted(pictures.rglob('*.png')): Image.open(d).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(d)
    mirrored = encode(pictures, tmp_path/'m', codec, **kw).train
    assert torch.equal(flip.gather(range(24)), plain.gather(range(24)))
    assert torch.allclose(flip.gather(range(24), 'latent_flip').float(), mirrored.gather(range(24)).float(), atol=2e-3)
    ps = find_pictures(pictures); std = codec.encode_moments(to_tensor([load_picture(ps.open(i), 32) for i in range(24)]).flip(-1))[1]
    assert torch.allclose(flip.gather(range(24), 'latent_std').float(), std, rtol=2e-3)
    interrupted(pictures, tmp_path/'r', codec, 13, **rich)
    eight = encode(pictures, tmp_path/'r', codec, **rich); encode(pictures, tmp_path/'whole', codec, **rich)
    assert content(tmp_path/'r')==content(tmp_path/'whole') and eight.extras==['latent_flip','latent_std']
    error = eight.train.__getitems__(range(24))[0]-mirrored.__getitems__(range(24))[0]
    assert (error.abs()<=eight.quantizer.step/2+2e-3).all() and eight.problems()==[]

def test_no_posterior(pictures, codec, tmp_path):
    c = copy(codec); c.encode_moments = lambda x: (torch.zeros(1,4,4,4),)*2
    with pytest.raises(ValueError, match='no posterior'): encode(pictures, tmp_path/'s', c, **ARGS, moments=True)

def test_random_crops(codec, tmp_path):
    "Decided by seed and key: the same after an interruption, others with another seed"
    src = make_pictures(tmp_path/'wide', 24, size=(96,32)); kw = dict(ARGS, crop='random')
    a, b, c = (encode(src, tmp_path/n, codec, **kw, seed=s).train.gather(range(18)) for n,s in (('a',0), ('b',1), ('c',0)))
    interrupted(src, tmp_path/'d', codec, 5, **kw); encode(src, tmp_path/'d', codec, **kw)
    assert torch.equal(a, c) and not torch.equal(a, b) and content(tmp_path/'d')==content(tmp_path/'a')

def test_disk_full(pictures, codec, tmp_path, monkeypatch):
    "Finished shards stay, nothing half-written does, and the same call goes on when there is room"
    encode(pictures, tmp_path/'whole', codec, **ARGS)
    write, n = E.write_shard, iter(range(100))
    def full(*args, **kw):
        if next(n)==2: raise OSError(errno.ENOSPC, 'No space left on device')
        return write(*args, **kw)
    monkeypatch.setattr(E, 'write_shard', full)
    with pytest.raises(OSError, match='No space left'): encode(pictures, tmp_path/'s', codec, **ARGS)
    assert sorted(f.name for f in (tmp_path/'s').iterdir())==['plan.json','train-00000.arrow','train-00001.arrow']
    encode(pictures, tmp_path/'s', codec, **ARGS)
    assert content(tmp_path/'s')==content(tmp_path/'whole')

def test_at_an_address(pictures, codec, tmp_path, monkeypatch):
    "A store in a bucket: begun on one machine and finished on another, which has nothing of it"
    import fsspec
    encode(pictures, tmp_path/'whole', codec, **ARGS); fs = fsspec.filesystem('memory'); url = f'memory://{tmp_path.name}/store'
    monkeypatch.setenv('LATENTFAST_CACHE', str(tmp_path/'one')); interrupted(pictures, url, codec, 5)
    assert [f['name'].rsplit('/', 1)[-1] for f in fs.ls(url)]==['plan.json','train-00000.arrow']
    monkeypatch.setenv('LATENTFAST_CACHE', str(tmp_path/'two')); store = encode(pictures, url, codec, **ARGS)
    assert {f['name'].rsplit('/', 1)[-1]: fs.cat_file(f['name']) for f in fs.ls(url)}==content(tmp_path/'whole')==content(store.path)
    monkeypatch.setenv('LATENTFAST_CACHE', str(tmp_path/'one'))
    assert torch.equal(LatentStore(url).train.gather(range(18)), store.train.gather(range(18))) and encode(pictures, url, codec, **ARGS).problems()==[]

def test_an_address_opened_by_many_at_once(pictures, codec, tmp_path, monkeypatch):
    "Each finds a whole store, and what an encode on this machine has made and not sent yet stays"
    from concurrent.futures import ThreadPoolExecutor
    from latentfast.store import fetch_store
    monkeypatch.setenv('LATENTFAST_CACHE', str(tmp_path/'cache')); url = f'memory://{tmp_path.name}/store'
    interrupted(pictures, url, codec, 5); here = fetch_store(url)
    with E._locked(here):
        (here/'train-00001.arrow').write_bytes(b'not sent yet')
        fetch_store(url); assert {'.lock','plan.json','train-00000.arrow','train-00001.arrow'}=={f.name for f in here.iterdir()}
    (here/'.lock').write_text('killed')
    fetch_store(url); assert {'.lock','plan.json','train-00000.arrow'}=={f.name for f in here.iterdir()}  # it is made again, and sent
    store = encode(pictures, url, codec, **ARGS)
    with ThreadPoolExecutor(8) as ex: opened = list(ex.map(LatentStore, [url]*40))
    assert all(torch.equal(s.train.gather(range(18)), store.train.gather(range(18))) for s in opened)
    class NoCredentials(Exception): pass
    def down(*args, **kw): raise NoCredentials('who are you?')
    monkeypatch.setattr('fsspec.implementations.memory.MemoryFileSystem.exists', down)
    with pytest.raises(ValueError, match="can't be reached: NoCredentials: who are you"): LatentStore(url)

def test_same_whoever_asks(pictures, codec, codec_folder, tmp_path):
    "Threads, and a codec by name, make no difference to any byte"
    a = encode(pictures, tmp_path/'a', codec, **ARGS, workers=1)
    encode(str(pictures), str(tmp_path/'b'), str(codec_folder), **ARGS, workers=5)
    assert content(tmp_path/'a')==content(tmp_path/'b') and a.codec==str(codec_folder)

def test_unlabelled_and_test_split(codec, tmp_path):
    make_pictures(tmp_path/'flat', 5, classes=['.'])
    store = encode(tmp_path/'flat', tmp_path/'s', codec, **ARGS, valid_pct=0)
    assert store.classes==[] and store.train.labels.tolist()==[-1]*5 and len(store.valid)==0
    for split,n in (('train',6), ('val',2), ('test',3)): make_pictures(tmp_path/'tree'/split, n)
    store = encode(tmp_path/'tree', tmp_path/'t', codec, **ARGS)
    from latentfast.store import LatentDataset
    assert store.index['counts']==dict(train=6, valid=2, test=3) and len(LatentDataset(store, 'test'))==3

def test_captions(pictures, codec, tmp_path):
    caps = {'cat/0000.png':'ein Kätzchen', 'dog/0001.png':'a dog'}
    store = encode(pictures, tmp_path/'a', codec, **ARGS, captions=caps, valid_pct=0)
    assert store.train.captions(0)=='ein Kätzchen' and store.train.captions(1) is None
    (tmp_path/'m.jsonl').write_text('\n'.join(json.dumps(dict(file_name=k, text=v)) for k,v in caps.items()))
    encode(pictures, tmp_path/'b', codec, **ARGS, captions=tmp_path/'m.jsonl', valid_pct=0)
    assert content(tmp_path/'a')==content(tmp_path/'b')
    with pytest.raises(ValueError, match='captions are others now'):
        encode(pictures, tmp_path/'a', codec, **ARGS, captions={**caps, 'dog/0001.png':'x'}, valid_pct=0)
    with pytest.raises(ValueError, match="'x' .*the names have to agree|'x', .*the names have to agree"):
        encode(pictures, tmp_path/'c', codec, captions={'x':'y'})
    (tmp_path/'bad.jsonl').write_text('{"key": 1}\nx')
    with pytest.raises(ValueError, match='JSON objects'): encode(pictures, tmp_path/'c', codec, captions=tmp_path/'bad.jsonl')
    with pytest.raises(FileNotFoundError): encode(pictures, tmp_path/'c', codec, captions='nowhere.jsonl')

def test_own_size(codec, tmp_path):
    make_pictures(tmp_path/'p', 4, size=(50,40)); make_pictures(tmp_path/'q', 4, size=(50,44))
    assert encode(tmp_path/'p', tmp_path/'a', codec, **{**ARGS, 'size':None}).image_size==40
    with pytest.raises(ValueError, match='size=44 is the short side of cat/0000.png.*such as 40 or 48'):
        encode(tmp_path/'q', tmp_path/'b', codec, **{**ARGS, 'size':None})

# Refusals ------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('change,message', [
    (dict(size=36), 'multiple of 8, such as 32 or 40'), (dict(size=4), 'such as 8'), (dict(size=0), 'size=0'),
    (dict(size=32.5), 'whole number'), (dict(size='x'), 'whole number'), (dict(batch_size=0), 'batch_size=0'),
    (dict(shard_rows=-1), 'shard_rows=-1'), (dict(workers=0), 'workers=0'), (dict(valid_pct=1), 'valid_pct=1'),
    (dict(crop='top'), "crop='top'"), (dict(precision='fp8'), "precision='fp8'"), (dict(codec=3), 'codec is a int')])
def test_arguments(pictures, codec, tmp_path, change, message):
    with pytest.raises(ValueError, match=message): encode(pictures, tmp_path/'s', **{**ARGS, 'codec':codec, **change})
    assert not (tmp_path/'s').exists()

def test_sources(codec, tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder'): encode(tmp_path/'x', tmp_path/'s', codec)
    (tmp_path/'x').mkdir(); (tmp_path/'x'/'a.txt').touch()
    with pytest.raises(ValueError, match='no pictures: 1 files'): encode(tmp_path/'x', tmp_path/'s', codec)
    with pytest.raises(FileNotFoundError): encode(make_pictures(tmp_path/'p', 2), tmp_path/'s', './no-codec')
    assert not (tmp_path/'s').exists()

def test_foreign_folder(pictures, codec, tmp_path):
    f = tmp_path/'mine'; f.mkdir(); (f/'thesis.tex').write_text('x'); before = content(f)
    with pytest.raises(ValueError, match=r'holds something else \(thesis.tex\)'): encode(pictures, f, codec, **ARGS)
    assert content(f)==before
    with pytest.raises(ValueError, match='is a file'): encode(pictures, f/'thesis.tex', codec, **ARGS)
    (tmp_path/'new').mkdir()
    encode(pictures, tmp_path/'new', codec, **ARGS)

def interrupted(pictures, path, codec, batches, **kw):
    "Run into Ctrl-C after some batches"
    c, left = copy(codec), iter(range(batches))
    def stop(x):
        if next(left, None) is None: raise KeyboardInterrupt
        return codec.encode(x)
    c.encode = stop
    with pytest.raises(KeyboardInterrupt): encode(pictures, path, c, **{**ARGS, **kw})

def test_changed_arguments(pictures, codec, tmp_path):
    "On an unfinished store and on a finished one; nothing is touched"
    path = tmp_path/'s'; other = LatentCodec.from_pretrained(str(make_codec(tmp_path/'codec', seed=1)))
    interrupted(pictures, path, codec, 4)
    for finished in (False, True):
        before = content(path)
        for change,message in ((dict(size=40), 'size=32 then and 40 now'), (dict(batch_size=4), 'batch_size=3 then'),
                               (dict(shard_rows=8), 'shard_rows'), (dict(codec=other), 'fingerprint'),
                               (dict(crop='none'), "crop='center' then and 'none' now"), (dict(valid_pct=.5), 'valid_pct=0.1 then'),
                               (dict(precision='fp32'), "precision='bf16'")):
            if change.get('precision')==read_precision(path): continue
            with pytest.raises(ValueError, match=message): encode(pictures, path, **{**ARGS, 'codec':codec, **change})
        smooth().save(pictures/'dog'/'new.png')
        with pytest.raises(ValueError, match='pictures=24 then and 25 now'): encode(pictures, path, codec, **ARGS)
        os.rename(pictures/'dog'/'0001.png', pictures/'dog'/'moved.png'); os.unlink(pictures/'dog'/'new.png')
        with pytest.raises(ValueError, match='names, classes'): encode(pictures, path, codec, **ARGS)
        os.rename(pictures/'dog'/'moved.png', pictures/'dog'/'0001.png')
        assert content(path)==before
        encode(pictures, path, codec, **ARGS)
    (path/'plan.json').write_text('{'); (path/'index.json').unlink()
    with pytest.raises(ValueError, match='plan.json is damaged'): encode(pictures, path, codec, **ARGS)

def read_precision(path):
    return (json.loads((path/'plan.json').read_text()) if (path/'plan.json').exists() else read_index(path)['encode'])['precision']

def test_finished_before(pictures, codec, tmp_path, capsys):
    encode(pictures, tmp_path/'s', codec, **ARGS); before = {f.name: f.stat().st_mtime_ns for f in (tmp_path/'s').iterdir()}
    c = copy(codec); c.encode = None
    assert len(encode(pictures, tmp_path/'s', c, **{**ARGS, 'progress':True}).train)==18
    assert 'finished before' in capsys.readouterr().out and before=={f.name: f.stat().st_mtime_ns for f in (tmp_path/'s').iterdir()}

def test_foreign_store(pictures, codec, tmp_path):
    from test_store import make_store
    path = make_store(tmp_path/'s')[0].path; before = content(path)
    with pytest.raises(ValueError, match='not made by encode'): encode(pictures, path, codec, **ARGS)
    assert content(path)==before

# Interruptions -------------------------------------------------------------------------------------------------------------------------

def test_interrupted_at_every_batch(pictures, codec, tmp_path):
    encode(pictures, tmp_path/'whole', codec, **ARGS)
    for n in range(9):
        interrupted(pictures, tmp_path/f'{n}', codec, n)
        if n>4: interrupted(pictures, tmp_path/f'{n}', codec, 1)
        assert not (tmp_path/f'{n}'/'index.json').exists()
        encode(pictures, tmp_path/f'{n}', codec, **ARGS)
        assert content(tmp_path/f'{n}')==content(tmp_path/'whole')

def test_killed_between_any_two_steps(pictures, codec, tmp_path, monkeypatch):
    "As if the machine stopped before each of the renames and deletions that a run does; what was being written stays behind"
    encode(pictures, tmp_path/'whole', codec, **ARGS)
    class Dead(BaseException): pass
    replace, unlink = os.replace, Path.unlink
    for n in range(8):
        left = iter(range(n))
        def step(f):
            def wrapped(*args, **kw):
                if next(left, None) is None: raise Dead
                return f(*args, **kw)
            return wrapped
        with monkeypatch.context() as m:
            m.setattr(os, 'replace', step(replace))
            m.setattr(Path, 'unlink', lambda self, **kw: None if self.name.endswith(('.tmp','.lock')) else step(unlink)(self, **kw))
            try: encode(pictures, tmp_path/f'{n}', codec, **ARGS)
            except Dead: pass
        encode(pictures, tmp_path/f'{n}', codec, **ARGS)
        assert content(tmp_path/f'{n}')==content(tmp_path/'whole')

def test_mending(pictures, codec, tmp_path):
    "Of a finished store only those shards are made again that are gone or cut; a wrong shard in an unfinished one isn't kept"
    store = encode(pictures, tmp_path/'s', codec, **ARGS); path, before = store.path, content(store.path)
    os.truncate(path/'train-00001.arrow', 700); (path/'valid-00000.arrow').unlink(); kept = (path/'train-00000.arrow').stat().st_mtime_ns
    encode(pictures, path, codec, **ARGS)
    assert content(path)==before and kept==(path/'train-00000.arrow').stat().st_mtime_ns
    interrupted(pictures, tmp_path/'t', codec, 7)
    shutil.copy(path/'train-00001.arrow', tmp_path/'t'/'train-00000.arrow'); (tmp_path/'t'/'train-00001.arrow').write_bytes(b'junk')
    (tmp_path/'t'/'train-00002.arrow.0a1b2c3d.tmp').write_bytes(b'junk')
    encode(pictures, tmp_path/'t', codec, **ARGS)
    assert content(tmp_path/'t')==before
    raw = bytearray(before['index.json']); raw[100] ^= 1; (path/'index.json').write_bytes(raw)
    with pytest.raises(ValueError, match='index.json is damaged'): encode(pictures, path, codec, **ARGS)

SERVER = '''
"Encode in a forked process for each line that comes in, so that torch is imported once"
import json, os, sys, time
from latentfast.encode import encode, LatentCodec
import torch; torch.set_num_threads(1)
codec = LatentCodec.from_pretrained(sys.argv[1]); fast = codec.encode
for line in sys.stdin:
    src, path, wait = json.loads(line)
    if not (pid := os.fork()):
        def slow(x): time.sleep(wait); return fast(x)
        codec.encode = slow
        encode(src, path, codec, size=32, batch_size=3, shard_rows=7, progress=False)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
'''

@pytest.mark.parametrize('kills', [5, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_9(codec, codec_folder, tmp_path, kills):
    "Killed at random moments, one of them while we are locked out; the call after makes what an unbroken run makes"
    src, path, rng = make_pictures(tmp_path/'p', 90 if kills<10 else 900), tmp_path/'s', np.random.default_rng()
    break_some(src)
    env = dict(os.environ, OMP_NUM_THREADS='1',
               PYTHONPATH=os.pathsep.join([str(Path(E.__file__).parents[1]), os.environ.get('PYTHONPATH', '')]))
    server = subprocess.Popen([sys.executable, '-c', SERVER, codec_folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
                              text=True)
    def start(path, wait=.05):
        server.stdin.write(json.dumps([str(src), str(path), wait])+'\n'); server.stdin.flush()
        return int(server.stdout.readline())
    def ended(): return int(server.stdout.readline())
    shards = []
    for n in range(kills):
        pid = start(path)
        while not (path/'plan.json').exists(): time.sleep(.002)
        time.sleep(rng.random()*(.25 if kills<10 else .6))
        if n==0:
            with pytest.raises(ValueError, match=f'another process .process {pid} on'): encode(src, path, codec, **ARGS)
        os.kill(pid, signal.SIGKILL)
        assert ended()==signal.SIGKILL
        shards.append(len(list(path.glob('*.arrow'))))
        with pytest.raises(FileNotFoundError, match='unfinished'): LatentStore(path)
    for p in (path, tmp_path/'whole'): start(p, 0); assert ended()==0
    server.stdin.close(); server.wait()
    store = LatentStore(path)
    assert shards==sorted(shards) and content(path)==content(tmp_path/'whole') and store.problems()==[] and len(errors(store))==11

@pytest.mark.slow
def test_memory_does_not_grow(codec_folder, tmp_path):
    "Ten times the pictures, the same peak memory to a tenth; every one of them arrives"
    src = make_pictures(tmp_path/'p', 200)
    for i in range(20_000): os.link(src/('cat','dog')[i%2]/f'{i%200:04d}.png', src/('cat','dog')[i%2]/f'again{i:05d}.png')
    few = tmp_path/'few'; few.mkdir()
    for i in range(2_000): os.link(src/'cat'/f'{i%200//2*2:04d}.png', few/f'{i:05d}.png')
    code = ('import resource, sys; from latentfast.encode import encode; s = encode(sys.argv[1], sys.argv[2], sys.argv[3], size=32, shard_rows=1024, progress=False); '
            'print(sum(s.index["counts"].values()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)')
    def peak(folder, out): return tuple(map(int, subprocess.check_output([sys.executable, '-c', code, folder, tmp_path/out, codec_folder]).split()))
    (n1,m1), (n2,m2) = peak(few, 'a'), peak(src, 'b')
    assert (n1, n2)==(2_000, 20_200) and m2 < 1.1*m1, (m1, m2)
