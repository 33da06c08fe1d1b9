"Sources: what is found where, what becomes of odd and broken pictures, and that it works from any thread and process"
import io, json, os, shutil, subprocess, sys, tarfile, zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq, pytest
from PIL import Image
import latentfast.sources as S
from latentfast.sources import find_pictures, load_picture
from conftest import make_pictures

def rows(ps): return list(zip(ps.keys, ps.labels.tolist(), ps.splits))
def touch(root, *names, **kw):
    for n in names: (root/n).parent.mkdir(parents=True, exist_ok=True); (root/n).touch()
    return rows(find_pictures(root, **kw))
def smooth(h=48, w=64):
    y,x = np.mgrid[:h,:w]/np.array([h,w])[:,None,None]
    return Image.fromarray((np.stack([x, y, .5+.4*np.sin(6*x+4*y)], -1)*255).round().astype(np.uint8))
def saved(im, fmt, **kw): b = io.BytesIO(); im.save(b, fmt, **kw); b.seek(0); return b
def noise(n=60, seed=0): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (n,n,3), np.uint8))

# Which pictures ------------------------------------------------------------------------------------------------------------------------

def test_layouts(tmp_path):
    with pytest.warns(UserWarning, match='2 pictures are left out: they are in other, beside the folders Train, test, val, validation'):
        assert touch(tmp_path/'a', 'Train/b/1.JPG', 'validation/b/2.png', 'val/c/3.png', 'test/4.png', 'other/5.png', '6.png')==[
            ('Train/b/1.JPG',0,'train'), ('test/4.png',-1,'test'), ('val/c/3.png',1,'valid'), ('validation/b/2.png',0,'valid')]
    assert {s for _,_,s in touch(tmp_path/'b', *(f'train/x/{i}.png' for i in range(20)), valid_pct=.5)}=={'train','valid'}
    assert find_pictures(tmp_path/'b', 0).splits[0]=='train' and find_pictures(tmp_path/'a').classes==['b','c']
    assert [r[1] for r in touch(tmp_path/'d', 'test/1.png', 'valid/2.png')]==[0,1]                    # without train/ these are classes
    touch(tmp_path/'g', 'bus/1.png', 'car/2.png', 'train/3.png', '4.png', valid_pct=0)
    assert find_pictures(tmp_path/'g', 0).classes==['bus','car','train'] and len(find_pictures(tmp_path/'g', 0))==4  # a train is a class, too
    with pytest.warns(UserWarning, match='3 pictures of .* are left out, since they end in .dng, .heic'):
        assert len(touch(tmp_path/'h', '1.jpg', '2.HEIC', '3.heic', 'x/4.dng'))==1
    assert len(touch(tmp_path/'e', '.x.png', '._1.jpg', '__MACOSX/2.png', 'Thumbs.db', 'k/l/m.webp'))==1
    assert touch(tmp_path/'f', 'train/a.b/1.x.png', valid_pct=0)==[('train/a.b/1.x.png',0,'train')]

def test_links_and_names(tmp_path):
    touch(tmp_path/'real', 'cat/1.png'); src = tmp_path/'src'; src.mkdir()
    os.symlink(tmp_path/'real'/'cat', src/'cat'); os.symlink(src, src/'circle'); os.symlink('nowhere', src/'broken.png')
    (src/os.fsdecode(b'caf\xe9')).mkdir(); (src/'naïve 猫.png').touch()
    smooth().save(src/os.fsdecode(b'caf\xe9')/'1.png')
    ps = find_pictures(src, 0)
    assert rows(ps)==[('broken.png',-1,'train'), ('caf\\xe9/1.png',0,'train'), ('cat/1.png',1,'train'), ('naïve 猫.png',-1,'train')]
    assert load_picture(ps.open(1), 8).shape==(8,8,3) and len(ps.hash())==64
    with pytest.raises(FileNotFoundError): load_picture(ps.open(0), 8)

@pytest.mark.parametrize('valid_pct', [.02,.1,.5])
def test_no_picture_changes_sides(tmp_path, valid_pct):
    "Whatever else is there: nothing, a few, many"
    touch(tmp_path/'s', *(f'{i}.png' for i in range(2000)))
    all_of_them = {k:s for k,_,s in rows(find_pictures(tmp_path/'s', valid_pct))}
    assert abs(sum(s=='valid' for s in all_of_them.values())/2000-valid_pct)<.03
    for n in (1, 2, 3, 10, 300):
        assert all(all_of_them[k]==s for k,_,s in touch(tmp_path/f'{n}', *(f'{i}.png' for i in range(n)), valid_pct=valid_pct))
    more = {k:s for k,_,s in rows(find_pictures(tmp_path/'s', valid_pct+.1))}
    assert all(more[k]=='valid' for k,s in all_of_them.items() if s=='valid')

def test_reachable(tmp_path):
    "A picture that is gone, and a disk that is gone"
    src = make_pictures(tmp_path/'p', 4); ps = find_pictures(src); (src/ps.keys[0]).unlink()
    with pytest.raises(FileNotFoundError): load_picture(ps.open(0), 8)
    assert ps.reachable()
    shutil.move(src, tmp_path/'q'); assert not ps.reachable()

def test_unreachable(monkeypatch):
    "A bucket that doesn't answer is neither an empty nor a missing one"
    from fsspec.implementations.memory import MemoryFileSystem as M
    M().pipe('/far/1.png', png(0)); ps = find_pictures('memory://far')
    assert ps.reachable()
    def down(*args, **kw): raise ConnectionResetError('gone fishing')
    for what in ('exists','isfile','isdir'): monkeypatch.setattr(M, what, down)
    assert not ps.reachable()
    with pytest.raises(ValueError, match="far can't be reached: .*gone fishing"): find_pictures('memory://far')

def test_wherever_one_stands(tmp_path, monkeypatch):
    make_pictures(tmp_path/'p', 2); monkeypatch.chdir(tmp_path); ps = find_pictures('p'); monkeypatch.chdir('/')
    assert load_picture(ps.open(0), 8).shape==(8,8,3) and find_pictures(tmp_path/'p').hash()==ps.hash()

def test_tables(tmp_path):
    src = make_pictures(tmp_path/'p', 3); other = make_pictures(tmp_path/'o', 1)/'cat'/'0000.png'
    lines = '"image",class,caption', 'cat/0000.png,3,"two\nlines, ""quoted"""', f'{other},0,', 'dog/0001.png,,x', ''
    (src/'t.csv').write_bytes('\r\n'.join(lines).encode())
    ps = find_pictures(src/'t.csv', 0)
    assert ps.classes==['0','1','2','3'] and {k:(l,c) for k,l,c in zip(ps.keys, ps.labels.tolist(), ps.captions)}=={
        'cat/0000.png':(3,'two\nlines, "quoted"'), str(other):(0,None), 'dog/0001.png':(-1,'x')}
    assert all(load_picture(ps.open(i), 8).shape==(8,8,3) for i in range(3))
    for text,why in (('a;b\n1;2', 'one with the pictures'), ('file,split\nx,val\nx,train', 'twice')):
        (src/'u.csv').write_text(text)
        with pytest.raises(ValueError, match=why): find_pictures(src/'u.csv')
    (src/'v.tsv').write_text('file\tsplit\na.png\tval\nb.png\ttest\n')
    assert {s for _,_,s in rows(find_pictures(src/'v.tsv', 0))}=={'train'}                            # with no train these aren't parts
    assert find_pictures(src/'t.csv').hash()!=find_pictures(src).hash()

def test_captions(tmp_path):
    src = make_pictures(tmp_path/'p', 4); caps = {'cat/0000.png':'ein Kätzchen\u2028dort', 'dog/0001.png':'a dog'}
    want = [caps.get(k) for k in find_pictures(src).keys]
    lines = [json.dumps(dict(file_name=k, text=v), ensure_ascii=False)+'\n' for k,v in caps.items()]
    (tmp_path/'m.jsonl').write_text(''.join(lines)+'\n', 'utf-8')
    (tmp_path/'m.tsv').write_text('key\tcaption\n'+''.join(f'{k}\t{v}\n' for k,v in caps.items()), 'utf-8')
    for c in (caps, tmp_path/'m.jsonl', str(tmp_path/'m.tsv')): assert list(find_pictures(src, captions=c).captions)==want
    assert find_pictures(src).captions is None and find_pictures(src, captions=caps).hash()!=find_pictures(src).hash()
    with pytest.raises(ValueError, match="'x', .*the names have to agree"): find_pictures(src, captions={'x':'y'})
    (tmp_path/'bad.jsonl').write_text('{"key": 1}\nx')
    with pytest.raises(ValueError, match='JSON objects'): find_pictures(src, captions=tmp_path/'bad.jsonl')
    with pytest.raises(FileNotFoundError, match='no file of captions'): find_pictures(src, captions='nowhere.jsonl')

# Shards --------------------------------------------------------------------------------------------------------------------------------

def png(i): return saved(noise(12, i), 'PNG').getvalue()
def make_tar(path, files, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w', **kw) as tar:
        for name,b in files.items(): m = tarfile.TarInfo(name); m.size = len(b); tar.addfile(m, io.BytesIO(b))
def make_parquet(path, n, group):
    pq.write_table(pa.table(dict(jpg=[png(i) for i in range(n)], cls=[f'c{i%3}' for i in range(n)])), path, row_group_size=group)

@pytest.mark.parametrize('fmt', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats(tmp_path, fmt):
    files = {f'{"d"*60}/{"e"*60}/ü{i}.png':png(i) for i in range(5)} | {f'./x{i}.v1.jpg':png(i) for i in range(2)}
    make_tar(tmp_path/'s.tar', files | {'x0.cls':b' 1 ', '._y.png':b'', '.png':b'', 'z.txt':b''}, format=fmt, encoding='utf-8')
    ps = find_pictures(tmp_path, 0)
    assert rows(ps)==[(f's.tar/{"d"*60}/{"e"*60}/ü{i}',-1,'train') for i in range(5)]
    for i in range(5): assert ps.open(i).read()==png(i)

def test_damaged_tars(tmp_path):
    "Cut at any place, or with any byte of a header changed: a clear error, or all pictures as they were"
    make_tar(tmp_path/'s.tar', {f'{i}.png':png(i) for i in range(3)}); whole = (tmp_path/'s.tar').read_bytes(); errors = 0
    second = whole.index(b'1.png'); end = whole.index(b'2.png')+512+len(png(2))
    damaged = [whole[:n] for n in range(0, end, 97)]
    damaged += [whole[:n]+bytes([whole[n]^0x41])+whole[n+1:] for n in range(second, second+512, 7)]
    for b in damaged:
        (tmp_path/'s.tar').write_bytes(b)
        try: assert [find_pictures(tmp_path, 0).open(i).read() for i in range(3)]==[png(i) for i in range(3)]
        except ValueError as e: assert 's.tar' in str(e) and 'copy it again' in str(e); errors += 1
    assert errors>=len(damaged)-2
    (tmp_path/'s.tar').write_bytes(whole); ps = find_pictures(tmp_path, 0); os.truncate(tmp_path/'s.tar', second)
    with pytest.raises(OSError, match='s.tar ends before'): ps.open(2)
    (tmp_path/'s.tar').unlink(); assert not ps.reachable()

def test_shard_splits(tmp_path):
    for f in ('train-00.tar', 'val-00.tar', 'notes.tar'): make_tar(tmp_path/f, {'0.png':png(0)})
    assert [s for *_,s in rows(find_pictures(tmp_path))]==['train','valid']
    make_tar(tmp_path/'b'/'train'/'00.tar', {'0.png':png(0)}); make_tar(tmp_path/'b'/'test'/'00.tar', {'0.png':png(0)})
    assert [r[2] for r in rows(find_pictures(tmp_path/'b'))]==['valid','train']
    make_tar(tmp_path/'c'/'retrain-val-00.tar', {'0.png':png(0)}); assert find_pictures(tmp_path/'c', 0).splits[0]=='train'

def test_img2dataset_tars(tmp_path):
    "A folder as img2dataset writes it for WebDataset: .tar with pictures, beside each a .parquet without, and a .json"
    for s in range(2):
        notes = json.dumps(dict(caption='as json', status='success', key=f'{s}')).encode()
        make_tar(tmp_path/f'{s:05d}.tar', {f'{s:05d}0000.{e}':b for e,b in dict(jpg=png(s), txt=b'a text', json=notes).items()}
                 | {f'{s:05d}0001.jpg':png(9)})
        pq.write_table(pa.table(dict(url=['u'], caption=['c'])), tmp_path/f'{s:05d}.parquet'); (tmp_path/f'{s:05d}_stats.json').touch()
    ps = find_pictures(tmp_path, 0)
    assert ps.kind=='webdataset' and list(ps.captions)==['a text',None]*2
    assert list(ps.keys)[:2]==['00000.tar/000000000','00000.tar/000000001']

def test_parquet_groups_are_read_once(tmp_path):
    "By many threads that want the same one at once"
    make_parquet(tmp_path/'a.parquet', 60, 20); S._row_group.cache_clear(); ps = find_pictures(tmp_path, 0)
    with ThreadPoolExecutor(8) as pool: assert list(pool.map(lambda i: ps.open(i).read(), range(60)))==[png(i) for i in range(60)]
    assert S._row_group.cache_info().misses==3 and ps.classes==['c0','c1','c2'] and ps.labels.tolist()[:4]==[0,1,2,0]

def test_parquet_is_unique(tmp_path):
    pq.write_table(pa.table(dict(jpg=[png(0), png(1)], key=['a','a'])), tmp_path/'a.parquet')
    with pytest.raises(ValueError, match='twice, such as a.parquet/a'): find_pictures(tmp_path)
    pq.write_table(pa.table(dict(jpg=[png(0), None], key=['a','b'])), tmp_path/'a.parquet')
    with pytest.raises(ValueError, match='no picture in this row'): find_pictures(tmp_path).open(1)

def sources(root):
    "One of each, with the same 12 pictures"
    src = make_pictures(root/'folder', 12)
    keys = sorted(f.relative_to(src).as_posix() for f in src.rglob('*.png')); contents = [(src/k).read_bytes() for k in keys]
    (root/'t').mkdir(); (root/'t'/'t.csv').write_text('file\n'+'\n'.join(str(src/k) for k in keys))
    for s in range(2): make_tar(root/'tars'/f'{s}.tar', {f'{i:02d}.png':contents[i] for i in range(6*s, 6*s+6)})
    (root/'parquet').mkdir(); table = pa.table(dict(jpg=contents, key=[f'{i:02d}' for i in range(12)]))
    pq.write_table(table, root/'parquet'/'p.parquet', row_group_size=5)
    found = [src, root/'t'/'t.csv', root/'tars', root/'parquet']
    try: import datasets
    except ImportError: return found, contents
    datasets.disable_progress_bars()
    features = datasets.Features(image=datasets.Image())
    datasets.Dataset.from_dict(dict(image=[dict(bytes=c, path=None) for c in contents]), features).save_to_disk(root/'dataset')
    return [*found, root/'dataset'], contents

def test_other_processes(tmp_path):
    "Sent to another process, every source opens there; by threads, too, and part by part"
    found, contents = sources(tmp_path)
    want = [load_picture(io.BytesIO(c), 16) for c in contents]
    for n,ps in enumerate(all_ps := [find_pictures(f, 0) for f in found]):
        with ThreadPoolExecutor(4) as pool: got = list(pool.map(lambda i: load_picture(ps.open(i), 16), range(12)))
        assert (np.stack(got)==want).all(), ps.kind
        part = ps.take(np.arange(5, 9)); assert (load_picture(part.open(0), 16)==want[5]).all() and part.keys[3]==ps.keys[8]
    import pickle
    (tmp_path/'ps.pickle').write_bytes(pickle.dumps(all_ps))
    code = ('import pickle, sys, numpy as np; from latentfast.sources import load_picture\n'
            'np.save(sys.argv[2], [[load_picture(ps.open(i), 16) for i in range(len(ps))] for ps in pickle.load(open(sys.argv[1], "rb"))])')
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(S.__file__).parents[1]), os.environ.get('PYTHONPATH', '')]))
    subprocess.run([sys.executable, '-c', code, tmp_path/'ps.pickle', tmp_path/'a.npy'], check=True, env=env, cwd='/')
    assert (np.load(tmp_path/'a.npy')==want).all()

def test_hub_name(tmp_path, monkeypatch):
    "What `datasets.load_dataset` gives, by name and configuration; and what is said without the package"
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=['a','b']))
    def load(name, config): asked.append((name, config)); return datasets.DatasetDict({s:made for s in ('train','test')})
    made, asked = datasets.Dataset.from_dict(dict(img=[dict(bytes=png(i), path=None) for i in range(2)], label=[1,-1]), features), []
    monkeypatch.setattr(datasets, 'load_dataset', load)
    ps = find_pictures('hf:some/name:conf')
    assert asked==[('some/name','conf')]
    assert rows(ps)==[(f'{s}/0000000{i}',l,c) for s,c in (('test','valid'),('train','train')) for i,l in enumerate((1,-1))]
    assert ps.open(3).read()==png(1) and ps.kind=='dataset' and ps.classes==['a','b'] and ps.reachable() and ps.captions is None
    monkeypatch.setitem(sys.modules, 'datasets', None); S._dataset.cache_clear()
    with pytest.raises(ValueError, match=r'pip install latentfast\[datasets\]'): find_pictures('hf:other')

@pytest.mark.parametrize('name', ['x.zip', 'x.tar.gz', 'x.jpg'])
def test_other_files(tmp_path, name):
    (tmp_path/name).touch()
    with pytest.raises(ValueError, match='is a file: give a folder'): find_pictures(tmp_path/name)

# Odd pictures --------------------------------------------------------------------------------------------------------------------------

def test_modes():
    im, want = smooth(), load_picture(saved(smooth(), 'PNG'), 16).astype(int)
    def same(b, tol=3, w=want): assert np.abs(load_picture(b, 16).astype(int)-w).max()<=tol
    same(saved(im, 'JPEG', quality=98, subsampling=0), 6); same(saved(im.convert('CMYK'), 'TIFF'))
    same(saved(im.convert('CMYK'), 'JPEG', quality=98), 8); same(im, 0)
    same(saved(im, 'WEBP', lossless=True)); same(saved(im, 'BMP'), 0); same(saved(im, 'PPM'), 0); same(saved(im.quantize(256), 'GIF'), 24)
    same(saved(im.convert('RGBA'), 'PNG'), 0); same(saved(im.quantize(256), 'PNG'), 24)
    for fmt in ('GIF','PNG','WEBP','TIFF'):  # the first of several
        same(saved(im, fmt, save_all=True, append_images=[im.rotate(180)]*2, **(dict(lossless=True) if fmt=='WEBP' else {})), 24)
    grey = im.convert('L'); wg = load_picture(saved(grey, 'PNG'), 16).astype(int); deep = np.asarray(grey).astype(np.uint16)*257
    assert wg.shape==(16,16,3) and (wg[...,0]==wg[...,2]).all()
    same(saved(Image.fromarray(deep), 'PNG'), 1, wg); same(saved(Image.fromarray(deep), 'TIFF'), 1, wg)
    same(saved(grey.convert('LA'), 'PNG'), 0, wg); same(saved(grey, 'JPEG', quality=98), 3, wg)
    same(saved(Image.fromarray(np.asarray(grey).astype(np.float32)/255), 'TIFF'), 1, wg)
    same(saved(Image.fromarray(np.asarray(grey).astype(np.float32)), 'TIFF'), 1, wg)
    assert set(np.unique(load_picture(saved(grey.convert('1'), 'PNG'), 48)))>={0,255}

def test_transparent_is_white():
    clear = Image.new('RGBA', (20,20), (255,0,0,0)); half = Image.new('RGBA', (20,20), (0,0,0,128))
    assert (load_picture(saved(clear, 'PNG'), 8)==255).all() and np.abs(load_picture(saved(half, 'PNG'), 8).astype(int)-127).max()<=1
    p = Image.new('P', (20,20), 0); p.putpalette([9,9,9]*256)
    assert (load_picture(saved(p, 'PNG', transparency=0), 8)==255).all() and (load_picture(saved(p, 'PNG'), 8)==9).all()
    assert (load_picture(saved(p, 'GIF', transparency=0), 8)==255).all()
    rgb = Image.new('RGB', (20,20), (1,2,3)); assert (load_picture(saved(rgb, 'PNG', transparency=(1,2,3)), 8)==255).all()

@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
@pytest.mark.parametrize('fmt', ['PNG','JPEG','WEBP','TIFF'])
@pytest.mark.parametrize('crop', ['center','none'])
def test_exif(fmt, crop):
    want = load_picture(saved(smooth(), 'PNG'), 16, crop).astype(int)
    undo = [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270]
    for n,t in enumerate(undo, 2):
        e = Image.Exif(); e[274] = n
        b = saved(smooth().transpose(t), fmt, exif=e, **({} if fmt in ('PNG','TIFF') else dict(quality=98)))
        got = load_picture(b, 16, crop).astype(int)
        assert np.abs(got-want).max()<=12, n
    assert np.abs(load_picture(saved(smooth(), 'JPEG', quality=98, exif=b'Exif\0\0II*\0garbage'), 16, crop)-want).max()<=12

def test_crop():
    a = np.zeros((20,60,3), np.uint8); a[:,20:40] = 255
    wide, tall = (saved(Image.fromarray(o), 'PNG') for o in (a, a.swapaxes(0,1)))
    assert (load_picture(wide, 20)==255).all() and (load_picture(tall, 20)==255).all()
    assert 60<load_picture(wide, 20, crop='none').mean()<110
    for b in (wide, tall):
        means = [load_picture(b, 20, 'random', seed=f'0/{i}').mean() for i in range(40)]
        assert min(means)<60 and max(means)>230 and means==[load_picture(b, 20, 'random', seed=f'0/{i}').mean() for i in range(40)]
    assert load_picture(saved(Image.new('RGB', (1,300)), 'PNG'), 16, 'random').shape==(16,16,3)
    with pytest.raises(ValueError, match="crop='squash'"): load_picture(wide, 20, 'squash')

@pytest.mark.parametrize('crop', ['center','none','random'])
@pytest.mark.parametrize('wh', [(1001,667),(333,775),(640,640)])
def test_draft_is_safe(wh, crop):
    "Decoding at reduced size gives the same picture, also where the sizes aren't multiples of 8"
    rng = np.random.default_rng(0)
    def noise(n): return Image.fromarray(rng.integers(0,256,(n,n,3),np.uint8)).resize(wh, Image.Resampling.BICUBIC)
    a = sum(np.asarray(noise(n), float) for n in (4,16,64))/3
    b = saved(Image.fromarray(a.astype(np.uint8)), 'JPEG', quality=92)
    fast, full = (load_picture(b, 32, crop, fast=f).astype(float) for f in (True,False))
    assert np.sqrt(((fast-full)**2).mean())<1.5 and np.abs(fast-full).max()<=16

def test_no_moire():
    "Fine stripes average to grey"
    a = np.zeros((256,256,3), np.uint8); a[:,::2] = 255
    assert np.abs(load_picture(saved(Image.fromarray(a), 'PNG'), 32).astype(float)-127.5).max()<6

def test_given_pictures_stay_as_they_are():
    im = Image.open(saved(noise(300), 'JPEG', quality=95)); load_picture(im, 16)
    assert im.size==(300,300) and im.copy().size==(300,300)

# Broken pictures -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('fmt', ['PNG','JPEG','WEBP','GIF','BMP','TIFF'])
@pytest.mark.parametrize('size', [8,64])
def test_cut(fmt, size):
    raw = saved(noise(200), fmt).getvalue()
    with pytest.raises(Exception): load_picture(io.BytesIO(raw[:len(raw)*6//10]), size)

def test_cut_jpeg():
    "Also progressive, and decoded at reduced size"
    for progressive in (False, True):
        raw = saved(noise(400), 'JPEG', progressive=progressive).getvalue()
        for share in (5,8,9.5):
            with pytest.raises(OSError, match='truncated'): load_picture(io.BytesIO(raw[:int(len(raw)*share/10)]), 16)

@pytest.mark.parametrize('b', [b'', b'<html>404</html>', b'\xff\xd8\xff'+bytes(range(256)), b'\x89PNG\r\n\x1a\n'])
def test_no_picture(b):
    with pytest.raises(Exception): load_picture(io.BytesIO(b), 16)

def test_bombs():
    raw = bytearray(saved(noise(), 'PNG').getvalue()); raw[16:24] = (30_000).to_bytes(4, 'big')*2
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, 'big')
    with pytest.raises(Image.DecompressionBombError): load_picture(io.BytesIO(raw), 16)
    for source in (saved(noise(), 'JPEG'), noise()):
        with pytest.raises(Image.DecompressionBombError, match='60 x 60'): load_picture(source, 16, max_pixels=3599)
    assert load_picture(noise(), 16, max_pixels=3600).shape==(16,16,3)
