"""Text to image on rendered scenes: how often a picture shows what its prompt says.

    python bench/text_to_image.py OUT [--quick] [--scenes 20000] [--pixels 64] [--epochs 60] [--size small] [--prompts 500] [--guidance 1 3 5] [--steps 50]

Scenes are rendered. One colour-and-shape combination in four is held out (every colour and every shape is still seen, in others): no scene
with one of these is trained on. A U-Net and a small text encoder are trained together on the captions of the rest; the prompts are captions of scenes that
have a held-out combination. The judge is the bundled `SceneReader`. A prompt is right if the picture shows all of its solids and no other, each of its colour
and shape.

share_right (share of prompts), for each guidance scale; also count, colour and shape by themselves, and place (left of, behind) of those that name one
  real         the same judge on real scenes of the same prompts, encoded and decoded: what can be reached at most
Everything is kept in OUT: started again with the same arguments, it goes on where it was. Pictures are in OUT/guidance-*.png,
the first short prompts with theirs, at the best guidance scale, in OUT/prompts.png.
"""
import argparse, csv, json, textwrap
from pathlib import Path
from compare import show
import numpy as np, torch

def held_out():
    "Six of the 24 combinations: each colour once, each shape once or twice"
    from latentfast.scenes import COLOURS, SHAPES
    return {(c, SHAPES[i%len(SHAPES)]) for i,c in enumerate(COLOURS)}

def is_new(caption):
    "Does a caption speak of a held-out combination?"
    from latentfast.conditioning import caption_solids
    return bool(held_out() & set(caption_solids(caption).items()))

def make_store(out, n, pixels):
    "Render, leave out what is held out, encode"
    from latentfast.encode import encode
    from latentfast.scenes import make_scenes
    src = make_scenes(out/'scenes', n, size=pixels)
    rows = [r for r in map(json.loads, (src/'scenes.jsonl').read_text().splitlines()) if not is_new(r['caption'])]
    table = src/'seen.csv'
    with open(table, 'w', newline='') as f: csv.writer(f).writerows([('file','caption','split'), *((r['key'],r['caption'],r['split']) for r in rows)])
    return encode(table, out/'store', size=pixels)

def train(out, store, size, epochs, lr):
    "Train with checkpoints; gives the folder of the model"
    from latentfast.callbacks import Checkpoint
    from latentfast.data import latent_dls
    from latentfast.training import SampleProgress, diffusion_learner
    import latentfast.pipeline  # export_pipeline
    model, some = out/'model', ['a large red cube','a small blue sphere left of a large yellow cone','a large green cylinder','a small purple cone behind a large orange cube']
    if (model/'model_index.json').exists(): return model
    settings = dict(size=size, epochs=epochs, lr=lr)
    cbs = [Checkpoint(out/'checkpoint.pt', settings), SampleProgress(every=max(1, epochs//10), cond=some, guidance_scale=3., folder=out/'progress')]
    learn = diffusion_learner(latent_dls(store, bs=64, cond='text', seed=0), size=size, seed=0, cbs=cbs)
    learn.fit_quietly(epochs, lr)
    return learn.export_pipeline(model)

def new_scenes(n):
    "The first `n` scenes, of seeds that no training has, with a held-out combination"
    from latentfast.scenes import random_scene
    found, seed = [], 10**9
    while len(found)<n:
        if is_new((s := random_scene(seed)).caption): found.append(s)
        seed += 1
    return found

def judge(out, model, n, scales, steps, pixels):
    "Shares of the prompts that are right, with each guidance scale, beside those of real scenes"
    from latentfast.autoencoder import grid_image, to_tensor
    from latentfast.conditioning import caption_places, prompts_right
    from latentfast.pipeline import LatentDiffusionPipeline
    from latentfast.scenes import render_scene
    file = out/'results.json'
    done = json.loads(file.read_text()) if file.exists() else {}
    scenes = new_scenes(n); prompts = [s.caption for s in scenes]
    pipe = LatentDiffusionPipeline.from_pretrained(model)
    def add(name, pictures):
        if name not in done:
            x = pictures()
            done[name] = prompts_right(x, prompts)
            grid_image(x[:64]).save(out/f'{name}.png'); file.write_text(json.dumps(done, indent=1))
        return done[name]
    real = add(f'real-{n}', lambda: torch.cat([pipe.codec.decode(pipe.codec.encode(to_tensor([render_scene(s, pixels) for s in scenes[i:i+64]]))) for i in range(0, n, 64)]))
    rows, places = [], sum(map(bool, map(caption_places, prompts)))
    for g in scales:
        ours = add(f'guidance-{g:g}-{n}-{steps}', lambda: pipe(prompt=prompts, num_inference_steps=steps, guidance_scale=g, seed=0, output_type='pt').images)
        for k,v in ours.items():
            if k not in real: continue
            case = f'guidance_{g:g}' if k=='all' else f'guidance_{g:g}_{k}'
            error = (v*(1-v)/(places if k=='place' else n))**.5  # of a share of n prompts
            rows.append(dict(bench='text_to_image', case=case, peer='real', unit='share', ours=v, theirs=real[k], ratio=v/max(real[k], 1e-9), runs=1,
                             spread=[(v-error)/max(real[k], 1e-9), (v+error)/max(real[k], 1e-9)]))
    best = max(scales, key=lambda g: done[f'guidance-{g:g}-{n}-{steps}']['all'])
    draw(pipe, [*dict.fromkeys(p for p in prompts if len(p)<50)][:8], best, steps, out/'prompts.png')
    return rows

def draw(pipe, prompts, guidance, steps, file):
    "Prompts over their pictures"
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    pictures = pipe(prompt=prompts, num_inference_steps=steps, guidance_scale=guidance, seed=0).images
    fig,axs = plt.subplots(2, -(-len(prompts)//2), figsize=(7.6,4.6), squeeze=False)
    for ax in axs.flat: ax.axis('off')
    for ax,p,im in zip(axs.flat, prompts, pictures): ax.imshow(im); ax.set_title('\n'.join(textwrap.wrap(p, 28)), fontsize=7)
    fig.tight_layout(); fig.savefig(file, dpi=80)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, nargs='?', default=Path('text-to-image'))
    p.add_argument('--quick', action='store_true', help='a few scenes and epochs, in a folder of its own: shows only that the script works')
    p.add_argument('--pixels', type=int, default=64, help='width and height of the scenes')
    p.add_argument('--scenes', type=int, default=20000); p.add_argument('--epochs', type=int, default=60); p.add_argument('--lr', type=float, default=2e-3)
    p.add_argument('--size', default='small'); p.add_argument('--prompts', type=int, default=500); p.add_argument('--steps', type=int, default=50)
    p.add_argument('--guidance', type=float, nargs='+', default=[1.,3.,5.])
    a = p.parse_args()
    if a.quick: a.out, a.scenes, a.epochs, a.size, a.prompts, a.steps = a.out/'quick', 300, 2, 'tiny', 16, 5
    a.out.mkdir(parents=True, exist_ok=True)
    store = make_store(a.out, a.scenes, a.pixels)
    show(judge(a.out, train(a.out, store, a.size, a.epochs, a.lr), a.prompts, a.guidance, a.steps, a.pixels))

if __name__=='__main__': main()
