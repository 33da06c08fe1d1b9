"The store: what it gives back, and that no damage to it goes unseen or ends in anything but a clear error"
import json, os, pickle, subprocess, sys
from types import SimpleNamespace
import numpy as np, pyarrow as pa, pytest, torch
from latentfast.store import (LatentDataset, LatentNormalizer, LatentQuantizer, LatentStore, read_index, replacing, shard_record, store_problems,
                              write_index, write_shard,
                              _open_shard, _seal)

CODEC, SHAPE = SimpleNamespace(name='some', fingerprint='KL-1'), (4,4,4)

def latents(n, seed=0, mean=0., shape=SHAPE):
    return (np.random.default_rng(seed).standard_normal((n,*shape))*np.array([.5,1,2,3])[:,None,None]+mean).astype(np.float16)

def make_store(path, sizes=dict(train=(20,0,1,33), valid=(7,)), captions=False, rich=False, **kw):
    "A store with shards of these sizes, if `rich` with every column there is and in eight bits; gives it and its latents by split"
    path.mkdir(); shards, all_z, captions = [], {}, captions or rich
    quantizer = LatentQuantizer([-3,-6,-12,-18], [3,6,12,18]) if rich else None
    for split,ns in sizes.items():
        zs, at = latents(sum(ns), seed=len(split)), 0
        all_z[split] = zs
        for i,n in enumerate(ns):
            keys = [f'{split}/{j}.png' for j in range(at, at+n)]
            shards.append(write_shard(path/f'{split}-{i:05d}.arrow', zs[at:at+n], np.arange(at, at+n)%3-1, keys,
                                      [k if i%2 else None for i,k in enumerate(keys)] if captions else None, quantizer=quantizer,
                                      **(dict(flips=-zs[at:at+n], stds=np.full_like(zs[at:at+n], .25)) if rich else {})))
            at += n
    (path/'errors.jsonl').write_text('{"key": "x.png", "error": "gone"}\n')
    write_index(path, shards, CODEC, 32, SHAPE, ['a','b'], ['caption']*captions+['latent_flip','latent_std']*rich, quantizer, **kw)
    return LatentStore(path), all_z

@pytest.fixture
def made(tmp_path): return make_store(tmp_path/'store')

def test_gather(made):
    store, z = made
    want, ds, rng = torch.from_numpy(z['train']).float(), store.train, np.random.default_rng(0)
    for idxs in (rng.integers(0, 54, 40), rng.integers(-54, 54, 40).tolist(), torch.randperm(54), range(5), [np.int32(53)]):
        zs,ys = ds.__getitems__(idxs)
        at = np.asarray(idxs)%54
        assert zs.dtype==torch.float32 and ys.dtype==torch.int64 and torch.equal(zs, want[at]) and torch.equal(ys, torch.from_numpy(at%3-1))
        assert ds.gather(idxs).dtype==torch.float16 and torch.equal(ds.gather(idxs).float(), want[at])
    for i in (0, 19, 20, 21, 53, -1, -54): assert torch.equal(ds[i][0], want[i]) and ds[i][1]==i%54%3-1 and isinstance(ds[i][1], int)
    zs,ys = ds.__getitems__([])
    assert zs.shape==(0,*SHAPE) and ys.shape==(0,) and len(list(ds))==54
    assert torch.equal(store.valid.__getitems__(range(7))[0], torch.from_numpy(z['valid']).float())
    assert (ds.labels==np.arange(54)%3-1).all() and ds.keys(20)=='train/20.png' and ds.keys(-1)=='train/53.png' and ds.captions(3) is None
    for bad in ([54], [-55], [.5], [True]):
        with pytest.raises(IndexError): ds.__getitems__(bad)
    with pytest.raises(IndexError): ds[54]

def test_what_comes_out_is_ours(made):
    "Changing a batch changes nothing in the file"
    store,_ = made
    store.train[0][0].zero_(); store.train.gather([0,1]).zero_(); store.train.__getitems__([0])[1].fill_(9)
    assert store.problems()==[] and store.train[0][0].abs().sum()>0 and store.train[0][1]==-1

def test_captions(tmp_path):
    store,_ = make_store(tmp_path/'s', captions=True)
    assert store.train.captions(21) is None and store.train.captions(22)=='train/22.png' and store.valid.captions(1)=='valid/1.png'

def test_eight_bits_and_chance(tmp_path):
    "Quantised latents come back to half a step, mirrored and drawn ones are what they should be, and one seed gives one batch"
    store, z = make_store(tmp_path/'s', rich=True); want, step = torch.from_numpy(z['train']).float(), store.quantizer.step
    assert store.dtype==torch.uint8 and store.train.gather([0]).dtype==torch.uint8 and store.extras==['caption','latent_flip','latent_std']
    assert ((store.train.__getitems__(range(54))[0]-want).abs()<=step/2+1e-4).all() and store.train.captions(22)=='train/22.png'
    flip, both = LatentDataset(store, flip=True), LatentDataset(store, flip=True, draw=True)
    torch.manual_seed(0); a = flip.__getitems__(range(54))[0]; torch.manual_seed(0); b = flip.__getitems__(range(54))[0]
    sign = torch.stack([torch.sign((x*w).sum()) for x,w in zip(a, want)])
    assert torch.equal(a, b) and 10<(sign<0).sum()<44 and ((a*sign[:,None,None,None]-want).abs()<=step/2+1e-4).all()
    torch.manual_seed(0); c = both.__getitems__(range(54))[0]
    assert abs((c-a).std().item()-.25)<.02
    dl = torch.utils.data.DataLoader(both, batch_size=27, num_workers=2, collate_fn=lambda b: b)
    torch.manual_seed(1); d = torch.cat([z for z,_ in dl]); torch.manual_seed(1); e = torch.cat([z for z,_ in dl])
    assert torch.equal(d, e) and not torch.equal(d, torch.cat([z for z,_ in dl]))
    np.testing.assert_allclose(store.index['mean'], store.train.__getitems__(range(54))[0].double().mean((0,2,3)), atol=1e-6)
    plain,_ = make_store(tmp_path/'p')
    with pytest.raises(ValueError, match='has no latent_std: encode again with moments=True'): LatentDataset(plain, draw=True)
    with pytest.raises(ValueError, match='has latent, and no latent_flip'): plain.train.gather([0], 'latent_flip')

def test_datasets_opens_every_shard(tmp_path):
    datasets = pytest.importorskip('datasets')
    store, z = make_store(tmp_path/'s', rich=True); plain, z = make_store(tmp_path/'p')
    for st in (store, plain):
        rows = [datasets.Dataset.from_file(str(st.path/s['file'])) for s in st.index['shards'] if s['split']=='train']
        all_rows = datasets.concatenate_datasets([r for r in rows if len(r)])
        assert len(all_rows)==54 and all_rows[53]['key']=='train/53.png' and all_rows[:]['label']==st.train.labels.tolist()
        assert np.array_equal(np.array(all_rows[7]['latent']).reshape(SHAPE), st.train.gather([7])[0].numpy())

def test_fastai_distributed(made):
    "Two ranks of fastai's DistributedDL share an epoch between them, in whole batches"
    from fastai.distributed import DistributedDL
    from latentfast.data import LatentDL
    store,_ = made; seen = []
    for rank in (0,1):
        dl = DistributedDL(LatentDL(store.train, bs=9), rank=rank, world_size=2)
        dl._broadcast = lambda t, rank: list(t)  # each rank has the same order here: one process plays both
        batches = list(dl); seen += [z for z,_ in batches]
        assert [len(z) for z,_ in batches]==[9,9,9]
    assert torch.equal(torch.cat(seen), store.train.__getitems__(range(54))[0])

def test_shard_of_another_store(tmp_path):
    "A shard that doesn't fit the index's columns is named"
    (a,_), (b,_) = make_store(tmp_path/'a'), make_store(tmp_path/'b', rich=True)
    (a.path/'train-00000.arrow').write_bytes((b.path/'train-00000.arrow').read_bytes())
    index = read_index(a.path); del index['checksum']; index['shards'][0]['bytes'] = (a.path/'train-00000.arrow').stat().st_size
    (a.path/'index.json').write_bytes(_seal(index))
    with pytest.raises(ValueError, match='train-00000.arrow does not fit the index: uint8 latents'): LatentStore(a.path)

def test_pictures_add_up(tmp_path):
    store,_ = make_store(tmp_path/'s', encode=dict(pictures=62)); assert store.problems()==[]
    store,_ = make_store(tmp_path/'t', encode=dict(pictures=63))
    assert store.problems()==['index.json counts 63 pictures, which are not 61 latents and the lines of errors.jsonl']

@pytest.mark.slow
def test_a_million_rows(tmp_path):
    "1.28 million rows open in under a second and 300 MB"
    n, shape, shards = 8192, (4,2,2), []
    for i in range(157):
        f = tmp_path/f'train-{i:05d}.arrow'
        shards.append(write_shard(f, np.zeros((n,*shape), np.float16), np.zeros(n), [f'{i}/{j}.jpg' for j in range(n)]))
    write_index(tmp_path, shards, CODEC, 16, shape)
    code = ('import resource, sys, time; from latentfast.store import LatentStore; m = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; t = time.perf_counter(); '
            's = LatentStore(sys.argv[1]); z = s.train.__getitems__([5, 1_280_000]); print(len(s.train), time.perf_counter()-t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-m)')
    rows, seconds, kilobytes = map(float, subprocess.check_output([sys.executable, '-c', code, str(tmp_path)]).split())
    assert rows==157*n and seconds<1 and kilobytes<300_000, (seconds, kilobytes)

def test_empty_split(tmp_path):
    store,_ = make_store(tmp_path/'s', dict(train=(3,)))
    assert len(store.valid)==0 and list(store.valid)==[] and len(store.valid.labels)==0 and store.splits==['train','valid']
    with pytest.raises(IndexError): store.valid[0]
    with pytest.raises(IndexError): store.valid.__getitems__([0])
    with pytest.raises(ValueError, match='training split'): make_store(tmp_path/'t', dict(valid=(3,)))

def test_statistics(tmp_path):
    "float64 sums over shards are the mean and deviation of all of it, also where the mean is far off"
    zs = latents(300, mean=1000.)
    shards = [write_shard(tmp_path/f'train-{i:05d}.arrow', z, [-1]*len(z), ['k']*len(z)) for i,
              z in enumerate(np.array_split(zs, [7,7,150]))]
    shards.append(write_shard(tmp_path/'valid-00000.arrow', latents(9), [-1]*9, ['k']*9))
    index = write_index(tmp_path, shards, CODEC, 32, SHAPE)
    np.testing.assert_allclose(index['mean'], zs.astype(np.float64).mean((0,2,3)), rtol=1e-13)
    np.testing.assert_allclose(index['std'],  zs.astype(np.float64).std((0,2,3)),  rtol=1e-6)
    assert LatentStore(tmp_path).normalizer.mean==index['mean']

def test_constant_channel(tmp_path):
    zs = latents(5); zs[:,2] = 1
    index = write_index(tmp_path, [write_shard(tmp_path/'train-00000.arrow', zs, [0]*5, ['k']*5)], CODEC, 32, SHAPE)
    store = LatentStore(tmp_path)
    assert index['std'][2]==1e-6 and torch.isfinite(store.normalizer.normalize(store.train.__getitems__(range(5))[0])).all()

@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_normalizer(dtype):
    norm = LatentNormalizer([1,2], [.5,4]); z = torch.randn(3,2,5,5, generator=torch.Generator().manual_seed(0)).to(dtype)
    n = norm.normalize(z)
    assert n.dtype==dtype and torch.allclose(n[:,1], (z[:,1]-2)/4) and torch.allclose(norm.denormalize(n), z,
                                                                                      atol=.1 if dtype==torch.bfloat16 else 1e-5)
    assert torch.equal(norm.normalize(z[0]), n[0]) and pickle.loads(pickle.dumps(norm))==norm
    with pytest.raises(ValueError, match=r'\[\.\.\.,2,h,w\]'): norm.normalize(torch.zeros(1,3,5,5))
    for mean,std in (([1],[0]), ([1],[1,1]), ([np.nan],[1]), ([],[])):
        with pytest.raises(ValueError): LatentNormalizer(mean, std)

def test_same_bytes_twice(tmp_path):
    (a,_), (b,_) = make_store(tmp_path/'a'), make_store(tmp_path/'b')
    assert {f.name: f.read_bytes() for f in a.path.iterdir()}=={f.name: f.read_bytes() for f in b.path.iterdir()}

def test_views_and_files(made):
    "Maps are views, and no file stays open, so that thousands of shards don't run into a limit"
    store,_ = made
    fds = lambda: [os.readlink(f'/proc/self/fd/{f}') for f in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{f}')]
    store.train[0]
    assert not any('.arrow' in f for f in fds())
    assert not any(a.flags.owndata or a.flags.writeable for a in store.train._open()[0]['latent'].arrays)

def test_several_record_batches(tmp_path):
    "Another writer may cut a shard into batches, or write a slice of a larger table"
    z = latents(10); write_shard(tmp_path/'whole', z, range(10), map(str, range(10)))
    _, (b,) = _open_shard(tmp_path/'whole')
    with pa.OSFile(str(tmp_path/'train-00000.arrow'), 'wb') as f, pa.ipc.new_stream(f, b.schema) as out:
        for s in (b.slice(2,3), b.slice(5,0), b.slice(7,3)): out.write_batch(s)
    write_index(tmp_path, [shard_record(tmp_path/'train-00000.arrow')], CODEC, 32, SHAPE)
    ds = LatentStore(tmp_path).train
    assert torch.equal(ds.__getitems__(range(6))[0], torch.from_numpy(z[[2,3,4,7,8,9]]).float())
    assert ds.labels.tolist()==[2,3,4,7,8,9] and ds.keys(3)=='7'

def test_two_processes(made):
    "A pickled data set opens its own maps in another process, while this one reads"
    store,_ = made
    store.train[0]
    code = ('import pickle,sys; d = pickle.load(sys.stdin.buffer); assert d._maps is None; '
            'print(float(d.gather(range(len(d))).double().sum()), d.keys(3))')
    other = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdin.write(pickle.dumps(store.train)); other.stdin.close()
    mine = float(store.train.gather(range(54)).double().sum())
    assert other.stdout.read().decode().split()==[str(mine), 'train/3.png'] and other.wait()==0

def test_loader_workers(made):
    store,_ = made
    dl = torch.utils.data.DataLoader(store.train, batch_size=10, num_workers=2, collate_fn=lambda b: b)
    assert torch.equal(torch.cat([z for z,_ in dl]), store.train.__getitems__(range(54))[0])

# Errors ------------------------------------------------------------------------------------------------------------------------------

def test_not_a_store(tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder'): LatentStore(tmp_path/'x')
    with pytest.raises(FileNotFoundError, match='holds no latent store'): LatentStore(tmp_path)
    (tmp_path/'plan.json').write_text('{}')
    with pytest.raises(FileNotFoundError, match='unfinished store.*encode again'): store_problems(tmp_path)

@pytest.mark.parametrize('raw', [b'', b'{', b'[]', b'null', b'{"checksum": 3}', b'{"checksum": "\\ud800"}', b'\xff\xfe', b'['*100_000])
def test_index_is_no_index(made, raw):
    (made[0].path/'index.json').write_bytes(raw)
    with pytest.raises(ValueError, match='index.json is damaged'): LatentStore(made[0].path)

@pytest.mark.parametrize('change,message',
                         [(dict(version=2), 'format version 2'), (dict(format='x'), 'does not belong'), (dict(mean=[1]), 'wrong kind'),
    (dict(shards=[dict(file='../train-0.arrow', split='train', rows=1, bytes=1, checksum='x')]), 'wrong kind'),
    (dict(shards=3), 'wrong kind'),
    (dict(latent_shape=None), 'wrong kind'), (dict(latent_shape=[4,4,5]), 'damaged'), (dict(std=[1,1,1,0]), 'std above 0')])
def test_index_sealed_but_wrong(made, change, message):
    path = made[0].path
    (path/'index.json').write_bytes(_seal({k:v for k,v in {**read_index(path), **change}.items() if k!='checksum'}))
    with pytest.raises(ValueError, match=message): LatentStore(path)

def test_counts(made):
    path = made[0].path; index = read_index(path); del index['checksum']
    index['counts']['train'] += 1
    (path/'index.json').write_bytes(_seal(index))
    assert store_problems(path)==['index.json counts 55 train latents and lists shards of 54']
    with pytest.raises(ValueError, match='54 rows and should have 55'): LatentStore(path).train[0]

def test_write_shard_errors(tmp_path):
    f, z = tmp_path/'train-00000.arrow', latents(3)
    for args,message in (((z.astype(np.float32), [0]*3, 'abc'), 'float16'), ((z[0], [0]*3, 'abc'), 'float16'),
                         ((z, [0]*2, 'abc'), '2 labels'),
                         ((z, [0]*3, 'ab'), '2 keys'), ((z, [0]*3, 'abc', ['x']), '1 captions')):
        with pytest.raises(ValueError, match=message): write_shard(f, *args)
    z[1,0,0,0] = np.nan
    with pytest.raises(ValueError, match='latents of b are not all finite'): write_shard(f, z, [0]*3, 'abc')
    with pytest.raises(RuntimeError):
        with replacing(f) as out: out.write(b'x'); raise RuntimeError
    assert list(tmp_path.iterdir())==[]

def test_check_codec(made):
    made[0].check_codec(CODEC)
    with pytest.raises(ValueError, match=r'made by some \(KL-1\); this autoencoder is other \(KL-2\)'):
        made[0].check_codec(SimpleNamespace(name='other', fingerprint='KL-2'))

def found(path):
    "Is the damage found, by verify or by opening? Anything but a ValueError or FileNotFoundError comes through"
    try: problems = store_problems(path)
    except FileNotFoundError: return True
    for p in problems: assert isinstance(p, str) and '\n' not in p and len(p)<600
    try: LatentStore(path)
    except (ValueError, FileNotFoundError) as e: assert problems or 'index' in str(e); return True
    return bool(problems)

@pytest.mark.parametrize('rich,n', [(False,70), (True,30), pytest.param(True, 500, marks=pytest.mark.slow)])
def test_fuzz(tmp_path, rich, n):
    "Random damages to shards, index and errors.jsonl, one at a time: none goes unseen, none ends in another error"
    path, rng = make_store(tmp_path/'store', rich=rich)[0].path, np.random.default_rng(n)
    whole = {f.name: f.read_bytes() for f in path.iterdir()}
    names = sorted(whole)
    def flip(raw):   raw[rng.integers(len(raw))] ^= 1<<rng.integers(8)
    def cut(raw):    del raw[rng.integers(len(raw)):]
    def zero(raw):   i = rng.integers(len(raw)-1); raw[i:i+64] = bytes(b^255 for b in raw[i:i+64])
    def extend(raw): raw.extend(rng.bytes(rng.integers(1, 100)))
    def insert(raw): i = rng.integers(len(raw)); raw[i:i] = rng.bytes(8)
    def remove(raw): i = rng.integers(len(raw)-8); del raw[i:i+8]
    def noise(raw):  raw[:] = rng.bytes(len(raw))
    def empty(raw):  raw.clear()
    assert not found(path)
    for n in range(n):
        name = names[rng.integers(len(names))]
        damage = (flip,cut,zero,extend,insert,remove,noise,empty,'delete','swap','stray','folder')[rng.integers(12)]
        (path/name).unlink()
        if damage=='delete': pass
        elif damage=='folder': (path/name).mkdir()
        elif damage=='swap': (path/name).write_bytes(whole[[o for o in names if o!=name][rng.integers(len(names)-1)]])
        elif damage=='stray': (path/name).write_bytes(whole[name]); (path/'train-00099.arrow').write_bytes(whole['train-00000.arrow'])
        else: raw = bytearray(whole[name]); damage(raw); (path/name).write_bytes(raw)
        assert found(path), (n, name, damage)
        if (path/name).is_dir(): (path/name).rmdir()
        (path/'train-00099.arrow').unlink(missing_ok=True); (path/name).write_bytes(whole[name])
    assert not found(path)

def test_fuzz_headers(made):
    "Opening and reading a shard with a wrong header raises ValueError, or gives something of the right shape, and never crashes"
    path, rng = made[0].path, np.random.default_rng(2); f = path/'train-00003.arrow'; whole = f.read_bytes()
    header, refused = len(whole)-33*(128+8+8), 0
    for _ in range(400):
        raw = bytearray(whole)
        for _ in range(rng.integers(1, 4)): raw[rng.integers(header)] ^= 1<<rng.integers(8)
        f.write_bytes(raw)
        try:
            ds = LatentStore(path).train
            assert ds.__getitems__(range(54))[0].shape==(54,*SHAPE)
            for i in range(21, 54): ds.keys(i)
        except ValueError as e: refused += 1; assert 'damaged' in str(e)
    assert refused>50
