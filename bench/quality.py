"""Does a loss on features give better pictures than MSE alone? The same network and data, and for each loss the same training time.

    python bench/quality.py PHOTOS [--minutes 20] [--seeds 3] [--arms ARM ...] [--work FOLDER] [--quick]
    python bench/quality.py PHOTOS --choose --minutes 10          # one seed, against training photos, to choose weights and gates by
    python bench/quality.py PHOTOS --case time_to_fid --minutes 60

PHOTOS holds folders of classes, such as CIFAR-10's; they are encoded at 64x64, so latents are 4x8x8. An arm is a loss, with @OBJECTIVE for
another than v, =WEIGHT for another weight than its own and >SNR for another gate, such as 'layers=.2>4', 'mse@eps', 'pooled@eps=.3'; flow
has the schedule flow, the others cosine. --weighting is for all but course: min_snr, or p2, or none for every noise level alike. Losses:
  mse        MSE alone                                   pooled    the classifier's pooled activations (the article's loss)
  brief      pooled, of a small classifier of one epoch  noised    pooled, of a classifier trained on lightly noised latents
  layers     the classifier's maps, channel-normalised   ensemble  the same under random transforms (E-LatentLPIPS)
  decoder    the autoencoder's decoder's maps (LPL)      self      an MSE-trained U-Net's middle (self-perceptual)
  align      the U-Net's middle and second level against the classifier's last and first map (REPA), above an SNR of .2: the default
  middle     the middle alone, at every SNR                bundled   align, with the bundled classifier of Tiny ImageNet's photos
  weak       align, sampled away from its own early average (`KeepWeak`), scale 1.5, in two thirds of the steps, half of which take two network calls
  mseweak    MSE alone, sampled so
cifar10_8x8 (FID, KID): each arm against mse_only, on the features of a pixel classifier that no loss knows, of decoded samples and decoded
  held-out latents; and on the latent classifier's own. An arm with @OBJECTIVE is compared with mse@OBJECTIVE, and that with mse. Training
  time is the same: each loss's step is timed once, in turns with mse's (processor time where there is one thread, or the clock's), and it gets the
  whole epochs that come nearest to the time.
time_to_fid (s): training time until the first of --arms has the FID that the course's way has after --minutes (course_baseline: eps,
  float32, MSE, torch's AdamW and convolutions, uniform times, no average of weights). It's trained anew for longer and longer until it is as good.
Samples are UniPC's, 50 steps; of eps, DDIM's with its guesses of x0 held in [-2,2], without which the first steps blow them up.
Everything is kept in --work, each model and a grid of its samples in runs/: the same command goes on where it stopped, and adds arms and seeds to
what is there. Started several times, it uses several cores: each process takes what no other is at (with OMP_NUM_THREADS=1, a process a core).
--quick has a folder of its own.
"""
import argparse, json, re, statistics, time, warnings
from functools import partial
from pathlib import Path
import numpy as np, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.optimizer import OptimWrapper
from filelock import FileLock, Timeout
from latentfast.all import *
from latentfast.store import replacing
from compare import plain_convolutions, show

WEIGHTS = dict(mse=0., course=0., pooled=1., brief=1., noised=1., layers=.5, ensemble=.5, decoder=.1, self=.1, align=.5, middle=.5, bundled=.5, weak=.5, mseweak=0.)
LR, BS, SIZE, STEPS = 2e-3, 64, 'tiny', 50

class Noised(Callback):
    "Lightly noised latents for a classifier's training: an SNR of 1 at the least"
    run_valid = False
    def before_batch(self):
        x = self.xb[0]; s = torch.rand(len(x),1,1,1)*.5**.5
        self.learn.xb = ((1-s**2).sqrt()*x + s*torch.randn_like(x),)

def parse(arm):
    "Loss, objective, weight and gate"
    m = re.fullmatch(r'([a-z]+)(?:@(\w+))?(?:=([\d.]+))?(?:>([\d.]+))?', arm)
    if not m or m[1] not in WEIGHTS or m[1]=='course' and m[2] or (m[2] or 'v') not in OBJECTIVES:
        raise SystemExit(f'{arm}: an arm is one of {", ".join(WEIGHTS)}, with @OBJECTIVE ({", ".join(OBJECTIVES)}), =WEIGHT and >SNR if you like; '
                         'course has its own.')
    return m[1], m[2] or 'v', float(m[3] or WEIGHTS[m[1]]), None if m[4] is None else float(m[4])

def base(arm):
    "What an arm is compared with: MSE alone with its objective, and that with `mse`"
    name, objective, *_ = parse(arm)
    return 'mse' if name=='mse' or objective=='v' else f'mse@{objective}'

def plain(name): return name.replace('>', '+')  # for a file's name

class Bench:
    def __init__(self, photos, work, minutes, choose=False, quick=False, weighting='min_snr'):
        self.work, self.minutes, self.choose, self.quick, self.locks = Path(work)/('quick' if quick else ''), minutes, choose, quick, {}
        self.weighting, self.tag = None if weighting=='none' else weighting, '' if weighting=='min_snr' else f'-{weighting}'
        for folder in 'runs','locks': (self.work/folder).mkdir(parents=True, exist_ok=True)
        self.n, self.photos = 60 if quick else 2500 if choose else 5000, photos
        with self.lock('store'): self.store = encode(photos, self.work/'store', size=64, progress=False)

    def lock(self, name, timeout=-1):
        "Of all processes with this work folder only one goes on; it may ask again. The system gives a killed one's back"
        return self.locks.setdefault(name, FileLock(self.work/'locks'/f'{plain(name)}.lock')).acquire(timeout)

    def share(self, jobs):
        "Do those of `jobs` (a dict of name and function) that no other process is at, then wait for the rest"
        for timeout in 0,-1:
            for name,job in jobs.items():
                try:
                    with self.lock(name, timeout): job()
                except Timeout: pass

    def file(self, name): return self.work/f'{plain(name)}.json'
    def once(self, name, make):
        "What `make` gives, as json; kept, and made only once"
        with self.lock(name):
            if not self.file(name).exists():
                made = json.dumps(make()).encode()
                with replacing(self.file(name)) as f: f.write(made)
        return json.loads(self.file(name).read_text())

    def net(self, name, learn, epochs, lr):
        "A classifier: trained once, then loaded"
        folder = self.work/name
        with self.lock(name):
            if not folder.exists():
                learn = learn(); learn.add_cb(Checkpoint(self.work/'runs'/f'{name}.pt'))
                learn.fit_quietly(1 if self.quick else epochs, lr, label=name)
                print(f'{name}: accuracy {learn.recorder.values[-1][2]:.3f}', flush=True)
                learn.model.save_pretrained(self.work/f'{name}.part'); (self.work/f'{name}.part').rename(folder)
        return LatentClassifier.from_pretrained(folder)
    def classifier(self, name='classifier'):
        dls = latent_dls(self.store, bs=64, seed=10)
        kw, epochs = dict(classifier=({}, 10), brief=(dict(nfs=(16,32,64,128,256)), 1), noised=(dict(cbs=[Noised()]), 10))[name]
        return self.net(name, lambda: classifier_learner(dls, **{**(dict(arch='tiny') if 'nfs' not in kw else {}), 'seed': 10, **kw}), epochs, 1e-2)
    def judge(self): return feature_net(self.net('judge', lambda: pixel_learner(self.store, n=200 if self.quick else 45_000, seed=110), 6, 3e-3))

    def losses(self, arm):
        name, _, w, gate = parse(arm)
        kw = dict(weight=w, **{} if gate is None else dict(min_snr=gate))
        if name in ('mse','mseweak'): return None
        if name in ('pooled','brief','noised'): return PerceptualLoss(self.classifier('classifier' if name=='pooled' else name), **kw)
        if name=='layers': return PerceptualLoss(self.classifier(), [-3,-2,-1], **kw)
        if name=='ensemble': return PerceptualLoss(self.classifier(), [-3,-2,-1], augment=latent_ensemble, **kw)
        if name=='decoder': return PerceptualLoss(DecoderFeatures(LatentCodec.from_pretrained('tiny'), self.store.normalizer), [0,1], norm='target', **kw)
        if name=='self': return PerceptualLoss(UNetFeatures(self.train('mse', 999).ema_model), [0], norm='mse', **kw)
        if name=='middle': return Alignment(self.classifier(), **kw)
        return alignments(LatentClassifier.from_pretrained('tiny-imagenet') if name=='bundled' else self.classifier(), **kw)

    def learner(self, arm, seed):
        objective = parse(arm)[1]
        adamw = partial(OptimWrapper, opt=torch.optim.AdamW)
        if arm=='course': kw = dict(objective='eps', weighting=None, precision=None, ema=None, clip=None, t_sampling='uniform', opt_func=adamw)
        else: kw = dict(perceptual=self.losses(arm), cbs=KeepWeak() if parse(arm)[0].endswith('weak') else None, objective=objective, weighting=self.weighting, schedule='flow' if objective=='flow' else 'cosine')
        learn = diffusion_learner(latent_dls(self.store, bs=BS, seed=seed, index=arm!='course'), size=SIZE, seed=seed, **kw)
        if arm=='course': plain_convolutions(learn.model)
        return learn

    def seconds(self, arm, n=20):
        "Seconds of a training step: mse's, and others' by the ratio to it that was timed in turns. It's the same for every weight"
        alone = torch.get_num_threads()==1 and not torch.cuda.is_available()
        clock = time.process_time if alone else time.perf_counter  # other work doesn't count as processor time
        name, objective, _, gate = parse(arm)
        key = name + f'@{objective}'*(objective!='v') + ('' if gate is None else f'>{gate:g}')
        class Timed(Callback):
            order, run_valid = 100, False
            def after_batch(self):
                times.append(clock())
                if len(times)>n: raise CancelFitException
        def measure():
            learners = {a: self.learner(a, 0) for a in dict.fromkeys(['mse', key])}
            out = {a: [] for a in learners}
            for r in range(2 if self.quick else 6):  # the first warms up
                for a,learn in learners.items():
                    times.clear()
                    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-5, cbs=Timed())
                    if r: out[a].append(statistics.median(np.diff(times)))
            return out
        times = []
        out = self.once(f'steps-{key}{self.tag}', measure)
        return statistics.median(out['mse']) if key=='mse' else statistics.median(a/b for a,b in zip(out[key], out['mse']))*self.seconds('mse')

    def epochs(self, arm):
        "Whole epochs, as near to the time as they come"
        n = self.minutes*60/(self.seconds(arm)*self.batches())
        return 2 if self.quick else max(1, round(n))
    def batches(self): return len(self.store.train)//BS

    def prepare(self, arms):
        "What several arms need, before any of them waits for it"
        names = {parse(a)[0] for a in arms}
        self.share(dict(judge=self.judge, classifier=self.classifier, **{k: partial(self.classifier, k) for k in ('brief','noised') if k in names},
                        **{f'run-{self.run_name("mse", 999, 8)}': lambda: self.train('mse', 999)} if 'self' in names else {}))
        return {a: self.epochs(a) for a in arms}

    def run_name(self, arm, seed, epochs): return f'{arm}-{seed}-{epochs}'+('' if arm=='course' else self.tag)
    def train(self, arm, seed, epochs=8):
        name = self.run_name(arm, seed, epochs)
        with self.lock(f'run-{name}'):
            learn = self.learner(arm, seed)
            learn.add_cb(Checkpoint(self.work/'runs'/f'{plain(name)}.pt', dict(arm=arm, seed=seed)))
            learn.fit_quietly(2 if self.quick else epochs, LR, label=name)
        return learn

    def score_name(self, arm, seed, epochs): return f'scores-{"choose-"*self.choose}{self.n}-{self.run_name(arm, seed, epochs)}'
    def score(self, arm, seed, epochs):
        def measure():
            learn = self.train(arm, seed, epochs)
            kw = dict(sampler='ddim', threshold=2.) if learn.noising.objective=='eps' else {}  # or eps's first steps blow up
            if hasattr(learn, 'weak_model'): kw = dict(weak=True, guidance_scale=1.5)
            z = learn.sample_latents(self.n, steps=STEPS*2//3 if 'weak' in kw else STEPS, seed=seed+1, progress=False, **kw)
            name = plain(self.run_name(arm, seed, epochs))
            learn.export_pipeline(self.work/'runs'/name); grid_image(learn.decode(z[:64]), ncol=8).save(self.work/'runs'/f'{name}.png')
            kw = dict(n=self.n, codec=learn.dls.codec)
            both = (evaluate(z, self.store, features=self.judge(), **(dict(against='train', pictures=self.photos) if self.choose else {}), **kw),
                    evaluate(z, self.store, features=self.classifier(), against='train' if self.choose else 'valid', **kw))
            return [{k: v for k,v in s.items() if isinstance(v, (int,float,str,dict))} for s in both]
        return self.once(self.score_name(arm, seed, epochs), measure)

    def compare(self, arms, seeds):
        arms = list(dict.fromkeys(['mse', *map(base, arms), *arms]))
        epochs, seeds = self.prepare(arms), [1000] if self.choose else range(seeds)
        def job(a, s):
            if self.file(self.score_name(a, s, epochs[a])).exists(): return
            self.score(a, s, epochs[a]); self.table(epochs, seeds)
        self.share({self.score_name(a, s, epochs[a]): partial(job, a, s) for s in seeds for a in arms})
        scores, out = self.table(epochs, seeds), []
        for a in arms[1:]:
            for k in 'fid','kid':
                ours, theirs = ([s[0][k] for s in scores[o]] for o in (a, base(a)))
                ratios = sorted(x/y for x,y in zip(ours, theirs))
                out.append(dict(bench='quality', case='cifar10_8x8', peer=base(a).replace('mse', 'mse_only'), unit=k.upper(), loss=a, ours=statistics.mean(ours),
                                theirs=statistics.mean(theirs), ratio=statistics.mean(ours)/statistics.mean(theirs), runs=len(ours),
                                spread=[ratios[0], ratios[-1]]))
        return out

    def time_to_fid(self, arm):
        epochs = self.prepare(['course', arm])
        goal = self.score('course', 0, epochs['course'])[0]['fid']
        time_of = lambda a, n: n*self.batches()*self.seconds(a)
        points, share = [], 1/8
        while not points or points[-1][1]>goal and share<1:
            n = max(1, round(epochs[arm]*share)); share *= 1.5
            points.append((time_of(arm, n), self.score(arm, 0, n)[0]['fid']))
            print(f'{arm}: FID {points[-1][1]:.2f} after {points[-1][0]/60:.1f} minutes; the course\'s way has {goal:.2f} after {time_of("course", epochs["course"])/60:.1f}', flush=True)
        if points[-1][1]>goal: raise SystemExit(f'{arm} does not get to a FID of {goal:.2f} in this time.')
        ours = points[-1][0] if len(points)==1 else float(np.interp(-goal, [-f for _,f in points[-2:]], [t for t,_ in points[-2:]]))
        theirs = time_of('course', epochs['course'])
        return [dict(bench='quality', case='time_to_fid', peer='course_baseline', unit='s', ours=ours, theirs=theirs, ratio=ours/theirs, runs=1, spread=[ours/theirs]*2)]

    def table(self, epochs, seeds):
        "Print the scores that there are of each arm, and give them"
        names = {a: [self.score_name(a, s, n) for s in seeds] for a,n in epochs.items()}
        scores = {a: found for a,v in names.items() if (found := [json.loads(self.file(o).read_text()) for o in v if self.file(o).exists()])}
        pm = lambda v, d: f'{statistics.mean(v):.{d}f} ± {statistics.stdev(v):.{d}f}' if len(v)>1 else f'{v[0]:.{d}f}'
        print(f'\n{"loss":14} {"ms/step":>8} {"epochs":>6} {"min":>6}   {"FID judge":15} {"KID judge x1000":16} {"FID classifier":15} {"std of latents":28} contrast')
        for a in scores:
            j, c = zip(*scores[a])
            std = np.mean([s['latents']['std'] for s in j], 0)
            print(f'{a:14} {self.seconds(a)*1e3:8.1f} {epochs[a]:6} {epochs[a]*self.batches()*self.seconds(a)/60:6.1f}   {pm([s["fid"] for s in j], 2):15} {pm([1e3*s["kid"] for s in j], 2):16} '
                  f'{pm([s["fid"] for s in c], 2):15} {" ".join(f"{v:.2f}" for v in std):28} {np.mean([s["pictures"]["contrast"] for s in j]):.3f} (real {j[0]["real_pictures"]["contrast"]:.3f})', flush=True)
        s = next(iter(scores.values()))[0]
        print(f'floor: FID {s[0]["floor_fid"]:.2f} (judge), {s[1]["floor_fid"]:.2f} (classifier); {s[0]["n"]} samples', flush=True)
        return scores

def run(photos, work='quality-work', minutes=20, seeds=3, arms=('mse','pooled','layers','align'), choose=False, quick=False, weighting='min_snr', case='cifar10_8x8'):
    bench = Bench(photos, work, minutes, choose, quick, weighting)
    return bench.time_to_fid(arms[0]) if case=='time_to_fid' else bench.compare(arms, seeds)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('photos'); p.add_argument('--work', default='quality-work'); p.add_argument('--minutes', type=float, default=20)
    p.add_argument('--case', default='cifar10_8x8', choices=['cifar10_8x8','time_to_fid'])
    p.add_argument('--seeds', type=int, default=3); p.add_argument('--arms', nargs='+', default=[a for a in WEIGHTS if a!='course'])
    p.add_argument('--weighting', default='min_snr', choices=['min_snr','p2','none'])
    p.add_argument('--choose', action='store_true', help='seed 1000, scores against training photos'); p.add_argument('--quick', action='store_true')
    a = p.parse_args()
    warnings.filterwarnings('ignore')
    show(run(**vars(a)))
