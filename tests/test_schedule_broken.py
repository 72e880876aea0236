"""Broken schedules, each with every fault that it has: code, line, column and help.

Files with warnings only stand at the end. The text of messages is free to change; what is asserted
is what a person or a program acts on.
"""

from __future__ import annotations

import pytest

from fastcl_cli.schedule import check
from fastcl_cli.schedule.diagnostics import CODES, render

Faults = list[tuple[str, int, int, str]]

BROKEN: list[tuple[str | bytes, Faults]] = [
    (
        b"\xff\xfeepochs 0-10: full;",
        [
            ("FCS001", 1, 1, "save the file as UTF-8 text"),
        ],
    ),
    (
        b"epochs 0-10: full; # caf\xe9",
        [
            ("FCS001", 1, 25, "save the file as UTF-8 text"),
        ],
    ),
    (
        "",
        [
            ("FCS013", 1, 1, "add `epochs 0-100: full;`"),
        ],
    ),
    (
        "# nothing\n",
        [
            ("FCS013", 1, 10, "add `epochs 0-100: full;`"),
        ],
    ),
    (
        "batch 512;",
        [
            ("FCS013", 1, 10, "add `epochs 0-100: full;`"),
        ],
    ),
    (
        ";;;",
        [
            ("FCS013", 1, 3, "add `epochs 0-100: full;`"),
        ],
    ),
    (
        "epochs 0-100 full;",
        [
            ("FCS003", 1, 14, "expected `:`"),
        ],
    ),
    (
        "epochs 0-100: drop 0.5, patch 32;",
        [
            ("FCS003", 1, 23, "expected `->`, `;`, `in`, `on` or a word"),
        ],
    ),
    (
        "epochs 0\u2013100: full;",
        [
            ("FCS003", 1, 9, "write `-`"),
        ],
    ),
    (
        "epochs 0-100: drop \u22120.5;",
        [
            ("FCS003", 1, 20, "write `-`"),
        ],
    ),
    (
        "epochs -5-100: full;",
        [
            (
                "FCS003",
                1,
                8,
                "expected `(`, `->`, `;`, `in`, `on`, a number, a string or a word; "
                "numbers have no sign",
            ),
        ],
    ),
    (
        "epochs 0-100: drop -0.5;",
        [
            (
                "FCS003",
                1,
                20,
                "expected `->`, `;`, `in`, `on`, a number or a word; numbers have no sign",
            ),
        ],
    ),
    (
        "epochs 0-100: drop 0.5 ->;",
        [
            ("FCS003", 1, 25, "expected a number"),
        ],
    ),
    (
        "epochs 0-100: drop 0.5 on;",
        [
            ("FCS003", 1, 25, "expected a word"),
        ],
    ),
    (
        "epochs 0-100: drop 0.5 -> 0.1 in;",
        [
            ("FCS003", 1, 32, "expected a number"),
        ],
    ),
    (
        "epochs 0-;",
        [
            ("FCS003", 1, 9, "expected a number"),
        ],
    ),
    (
        "epochs 0->100: full;",
        [
            ("FCS003", 1, 14, "expected `(`, `->`, `;`, `in`, `on`, a number, a string or a word"),
        ],
    ),
    (
        "model vit_small_patch16_224 (depth=);epochs 0-100: full;",
        [
            ("FCS003", 1, 36, "expected a number"),
        ],
    ),
    (
        "model vit_small_patch16_224 (depth 4);epochs 0-100: full;",
        [
            ("FCS003", 1, 36, "expected `=`"),
        ],
    ),
    (
        "model vit_small_patch16_224 (depth=4;epochs 0-100: full;",
        [
            ("FCS003", 1, 36, "expected `)` or `,`"),
        ],
    ),
    (
        "= 5;epochs 0-100: full;",
        [
            ("FCS003", 1, 1, "expected `in`, `on`, a number or a word"),
        ],
    ),
    (
        "lr = 5e-4;epochs 0-100: full;",
        [
            ("FCS003", 1, 4, "expected `(`, `->`, `;`, `in`, `on`, a number, a string or a word"),
        ],
    ),
    (
        "epochs 0-100: full;\nbatch: 512;",
        [
            ("FCS003", 2, 6, "expected `(`, `->`, `;`, `in`, `on`, a number, a string or a word"),
        ],
    ),
    (
        "'x';epochs 0-100: full;",
        [
            ("FCS003", 1, 1, 'write `"`'),
        ],
    ),
    (
        "lr 5e-4 \u2192 1e-5;epochs 0-100: full;",
        [
            ("FCS003", 1, 9, "write `->`"),
        ],
    ),
    (
        "batch\u00a0512;epochs 0-100: full;",
        [
            ("FCS003", 1, 6, "write a plain space"),
        ],
    ),
    (
        "batch 512\nepochs 0-100: full;",
        [
            ("FCS004", 1, 9, "put `;` between `512` and `epochs`"),
        ],
    ),
    (
        "batch 512\nlr 5e-4;epochs 0-100: full;",
        [
            ("FCS004", 1, 9, "put `;` between `512` and `lr`"),
        ],
    ),
    (
        "epochs 0-60: drop 0.5\nepochs 60-100: full",
        [
            ("FCS004", 1, 21, "put `;` between `0.5` and `epochs`"),
        ],
    ),
    (
        "epochs 0-60: full 60-100: full",
        [
            ("FCS004", 1, 17, "put `;` between `full` and `60`"),
            ("FCS016", 1, 19, "write `epochs 60-100:`, `steps 60-100:` or `60%-100%:`"),
        ],
    ),
    (
        'data "train.beton;\nepochs 0-100: full;',
        [
            ("FCS005", 1, 6, 'close it with `"` on its line'),
        ],
    ),
    (
        'data "train.beton\n;epochs 0-100: full;',
        [
            ("FCS005", 1, 6, 'close it with `"` on its line'),
        ],
    ),
    (
        "batch 1_000;epochs 0-100: full;",
        [
            ("FCS006", 1, 7, "write it like 12, 0.05 or 5e-4"),
        ],
    ),
    (
        "lr 5e-7x;epochs 0-100: full;",
        [
            ("FCS006", 1, 4, "write it like 12, 0.05 or 5e-4"),
        ],
    ),
    (
        "lr 1e-9;epochs 0-100: full;",
        [
            ("FCS006", 1, 4, "an exponent must lie within \u00b16"),
        ],
    ),
    (
        "lr 0.1234567890123;epochs 0-100: full;",
        [
            ("FCS006", 1, 4, "at most 12 significant digits are allowed"),
        ],
    ),
    (
        "images 99999999999;epochs 0-100: full;",
        [
            ("FCS006", 1, 8, "numbers above 1,000,000,000 are not allowed"),
        ],
    ),
    (
        "lr 1.2.3;epochs 0-100: full;",
        [
            ("FCS006", 1, 4, "write it like 12, 0.05 or 5e-4"),
        ],
    ),
    (
        "batch 0x10;epochs 0-100: full;",
        [
            ("FCS006", 1, 7, "write it like 12, 0.05 or 5e-4"),
        ],
    ),
    (
        "lr .e5;epochs 0-100: full;",
        [
            ("FCS003", 1, 4, "it means nothing here"),
        ],
    ),
    (
        "lr nan;epochs 0-100: full;",
        [
            ("FCS009", 1, 4, "the form is `lr X [per N]`"),
        ],
    ),
    (
        "lr inf;epochs 0-100: full;",
        [
            ("FCS009", 1, 4, "the form is `lr X [per N]`"),
        ],
    ),
    (
        "bacth 512;epochs 0-100: full;",
        [
            ("FCS007", 1, 1, "did you mean `batch`?"),
        ],
    ),
    (
        "learning_rate 1;epochs 0-100: full;",
        [
            ("FCS007", 1, 1, "did you mean `lr`?"),
        ],
    ),
    (
        "zzz 1;epochs 0-100: full;",
        [
            ("FCS007", 1, 1, "`fastcl validate --explain FCS007` lists them"),
        ],
    ),
    (
        "drop 0.5;epochs 0-100: full;",
        [
            ("FCS007", 1, 1, "`drop` belongs in a phase: `epochs 0-60: drop 0.5 patch 32;`"),
        ],
    ),
    (
        "epochs 100;",
        [
            ("FCS007", 1, 1, "a phase is written `epochs 0-60: drop 0.5 patch 32;`"),
            ("FCS013", 1, 11, "add `epochs 0-100: full;`"),
        ],
    ),
    (
        "batch;epochs 0-100: full;",
        [
            ("FCS009", 1, 5, "the form is `batch N`"),
        ],
    ),
    (
        "batch 0;epochs 0-100: full;",
        [
            ("FCS010", 1, 7, "a whole number from 1 to 1,000,000"),
        ],
    ),
    (
        "batch 512.5;epochs 0-100: full;",
        [
            ("FCS010", 1, 7, "a whole number from 1 to 1,000,000"),
        ],
    ),
    (
        "batch 50%;epochs 0-100: full;",
        [
            ("FCS009", 1, 7, "the form is `batch N`"),
        ],
    ),
    (
        "batch big;epochs 0-100: full;",
        [
            ("FCS009", 1, 7, "the form is `batch N`"),
        ],
    ),
    (
        "batch 512 per 256;epochs 0-100: full;",
        [
            ("FCS009", 1, 11, "the form is `batch N`"),
        ],
    ),
    (
        "batch 2000000;epochs 0-100: full;",
        [
            ("FCS010", 1, 7, "a whole number from 1 to 1,000,000"),
        ],
    ),
    (
        "batch 512; batch 256;epochs 0-100: full;",
        [
            ("FCS011", 1, 12, "remove one of them"),
        ],
    ),
    (
        "lr 0;epochs 0-100: full;",
        [
            ("FCS010", 1, 4, "a number above 0 to 100"),
        ],
    ),
    (
        "lr 5e-4 per;epochs 0-100: full;",
        [
            ("FCS009", 1, 11, "the form is `lr X [per N]`"),
        ],
    ),
    (
        "lr 5e-4 per 0;epochs 0-100: full;",
        [
            ("FCS010", 1, 13, "a whole number from 1 to 1,000,000,000"),
        ],
    ),
    (
        "lr 5e-4 pre 256;epochs 0-100: full;",
        [
            ("FCS009", 1, 9, "the form is `lr X [per N]`"),
        ],
    ),
    (
        "decay linear;epochs 0-100: full;",
        [
            ("FCS009", 1, 7, "allowed: cosine, poly or constant"),
        ],
    ),
    (
        "decay poly;epochs 0-100: full;",
        [
            ("FCS009", 1, 10, "the form is `decay cosine|poly K [to X] | constant`"),
        ],
    ),
    (
        "decay poly 0;epochs 0-100: full;",
        [
            ("FCS010", 1, 12, "a number above 0 to 10"),
        ],
    ),
    (
        "decay constant to 1e-5;epochs 0-100: full;",
        [
            ("FCS009", 1, 16, "the form is `decay cosine|poly K [to X] | constant`"),
        ],
    ),
    (
        "warmup 10;epochs 0-100: full;",
        [
            ("FCS009", 1, 9, "the form is `warmup N epochs|N steps|N%`"),
        ],
    ),
    (
        "warmup 10 epoch;epochs 0-100: full;",
        [
            ("FCS009", 1, 11, "did you mean `epochs`?"),
        ],
    ),
    (
        "warmup 1.5 steps;epochs 0-100: full;",
        [
            ("FCS010", 1, 8, "write a whole number"),
        ],
    ),
    (
        "warmup 150%;epochs 0-100: full;",
        [
            ("FCS010", 1, 8, "0% to 100%"),
        ],
    ),
    (
        "betas 0.9;epochs 0-100: full;",
        [
            ("FCS009", 1, 9, "the form is `betas A B`"),
        ],
    ),
    (
        "betas 0.9 1;epochs 0-100: full;",
        [
            ("FCS010", 1, 11, "a number from 0 to 0.999999"),
        ],
    ),
    (
        "weight_decay 0.1 ->;epochs 0-100: full;",
        [
            ("FCS009", 1, 19, "the form is `weight_decay A [-> B]`"),
        ],
    ),
    (
        "clip off;epochs 0-100: full;",
        [
            ("FCS009", 1, 6, "the form is `clip X|none`"),
        ],
    ),
    (
        "clip 0;epochs 0-100: full;",
        [
            ("FCS010", 1, 6, "a number above 0 to 1000000"),
        ],
    ),
    (
        "momentum 1.5;epochs 0-100: full;",
        [
            ("FCS010", 1, 10, "a number from 0 to 1"),
        ],
    ),
    (
        "temperature 0;epochs 0-100: full;",
        [
            ("FCS010", 1, 13, "a number above 0 to 10"),
        ],
    ),
    (
        "flip 2;epochs 0-100: full;",
        [
            ("FCS010", 1, 6, "a number from 0 to 1"),
        ],
    ),
    (
        "crop 1 0.5;epochs 0-100: full;",
        [
            ("FCS010", 1, 6, "write the smaller share first"),
        ],
    ),
    (
        "crop 0 1;epochs 0-100: full;",
        [
            ("FCS010", 1, 6, "a number above 0 to 1"),
        ],
    ),
    (
        "jitter 0.4 0.4 0.4 0.1;epochs 0-100: full;",
        [
            ("FCS009", 1, 22, "the form is `jitter B C S H P`"),
        ],
    ),
    (
        "jitter 0.4 0.4 0.4 0.9 0.8;epochs 0-100: full;",
        [
            ("FCS010", 1, 20, "a number from 0 to 0.5"),
        ],
    ),
    (
        "position fixed;epochs 0-100: full;",
        [
            ("FCS009", 1, 10, "allowed: sincos or learned"),
        ],
    ),
    (
        "freeze_patch yes;epochs 0-100: full;",
        [
            ("FCS009", 1, 14, "allowed: on or off"),
        ],
    ),
    (
        "precision fp16;epochs 0-100: full;",
        [
            ("FCS009", 1, 11, "did you mean `bf16`?"),
        ],
    ),
    (
        "decode 4;epochs 0-100: full;",
        [
            ("FCS010", 1, 8, "a whole number from 8 to 4,096"),
        ],
    ),
    (
        "data train.beton;epochs 0-100: full;",
        [
            ("FCS009", 1, 6, 'a path stands in double quotes: data "train.beton";'),
        ],
    ),
    (
        "data photos;epochs 0-100: full;",
        [
            ("FCS009", 1, 6, 'a path stands in double quotes: data "photos";'),
        ],
    ),
    (
        "val digits.beton;epochs 0-100: full;",
        [
            ("FCS009", 1, 5, 'a path stands in double quotes: val "digits.beton";'),
        ],
    ),
    (
        'data "";epochs 0-100: full;',
        [
            ("FCS009", 1, 6, 'data "train.beton";'),
        ],
    ),
    (
        "data digit;epochs 0-100: full;",
        [
            ("FCS009", 1, 6, "did you mean `digits`?"),
        ],
    ),
    (
        "head 4096;epochs 0-100: full;",
        [
            ("FCS009", 1, 9, "the form is `head HIDDEN OUT [PROTOTYPES]`"),
        ],
    ),
    (
        "head 4096 256 65536;epochs 0-100: full;",
        [
            ("FCS009", 1, 1, "for hidden and out"),
        ],
    ),
    (
        "method dino; head 2048 256;epochs 0-100: full;",
        [
            ("FCS009", 1, 14, "for hidden, bottleneck and prototypes"),
        ],
    ),
    (
        "method dino; blur 1 0.1;epochs 0-100: full;",
        [
            ("FCS009", 1, 14, "for two global views and the local ones"),
        ],
    ),
    (
        "solarize 0 0.2 0;epochs 0-100: full;",
        [
            ("FCS009", 1, 1, "for two views"),
        ],
    ),
    (
        "method byol;epochs 0-100: full;",
        [
            ("FCS009", 1, 8, "allowed: moco, simclr or dino"),
        ],
    ),
    (
        "method;epochs 0-100: full;",
        [
            ("FCS009", 1, 6, "the form is `method moco|simclr|dino`"),
        ],
    ),
    (
        "method moco dino;epochs 0-100: full;",
        [
            ("FCS009", 1, 13, "the form is `method moco|simclr|dino`"),
        ],
    ),
    (
        "locals 8 96;epochs 0-100: full;",
        [
            ("FCS020", 1, 1, "it is a setting of dino: remove it"),
        ],
    ),
    (
        "method simclr; momentum 0.99;epochs 0-100: full;",
        [
            ("FCS020", 1, 16, "it is a setting of moco and dino: remove it"),
        ],
    ),
    (
        "norm_last_layer on;epochs 0-100: full;",
        [
            ("FCS020", 1, 1, "it is a setting of dino: remove it"),
        ],
    ),
    (
        "method simclr; center_momentum 0.9;epochs 0-100: full;",
        [
            ("FCS020", 1, 16, "it is a setting of dino: remove it"),
        ],
    ),
    (
        "method dino; locals 0 96; local_crop 0.1 0.4;epochs 0-100: full;",
        [
            ("FCS020", 1, 27, "remove it"),
        ],
    ),
    (
        "method dino; teacher_temperature 0.04 -> 0.07;epochs 0-100: full;",
        [
            ("FCS009", 1, 45, "the form is `teacher_temperature A [-> B in N epochs]`"),
        ],
    ),
    (
        "model vit_tiny_patch16;epochs 0-100: full;",
        [
            ("FCS021", 1, 7, "did you mean `vit_tiny_patch16_224`?"),
        ],
    ),
    (
        "model vit_small;epochs 0-100: full;",
        [
            ("FCS021", 1, 7, "did you mean `vit_small_patch16_224`?"),
        ],
    ),
    (
        "model vit_base_patch16_plus;epochs 0-100: full;",
        [
            ("FCS021", 1, 7, "did you mean `vit_base_patch16_plus_240`?"),
        ],
    ),
    (
        "model vit_smal_patch16_224;epochs 0-100: full;",
        [
            ("FCS021", 1, 7, "did you mean `vit_small_patch16_224`?"),
        ],
    ),
    (
        "model resnet50;epochs 0-100: full;",
        [
            ("FCS021", 1, 7, "a timm ViT: vit_small_patch16_224, \u2026"),
        ],
    ),
    (
        "model vit_small_patch16_224.augreg_in21k;epochs 0-100: full;",
        [
            (
                "FCS021",
                1,
                7,
                "write `vit_small_patch16_224`: a tag names weights, and pre-training "
                "starts from none",
            ),
        ],
    ),
    (
        'model "vit.pth";epochs 0-100: full;',
        [
            (
                "FCS009",
                1,
                7,
                "the form is `model NAME [(embed_dim=N, depth=N, num_heads=N, "
                "patch_size=N, mlp_ratio=X)]`",
            ),
        ],
    ),
    (
        "model vit_small_patch16_224 (pretrained=1);epochs 0-100: full;",
        [
            ("FCS009", 1, 30, "options: embed_dim, depth, num_heads, patch_size or mlp_ratio"),
        ],
    ),
    (
        "model vit_small_patch16_224 (depth=4, depth=5);epochs 0-100: full;",
        [
            ("FCS011", 1, 39, "remove one of them"),
        ],
    ),
    (
        "model vit_small_patch16_224 (depth=0);epochs 0-100: full;",
        [
            ("FCS010", 1, 36, "a whole number from 1 to 200"),
        ],
    ),
    (
        "model vit_small_patch16_224 (num_heads=5);epochs 0-100: full;",
        [
            ("FCS022", 1, 1, "use num_heads=3, 4 or 6"),
        ],
    ),
    (
        "model vit_small_patch16_224 (mlp_ratio=100);epochs 0-100: full;",
        [
            ("FCS010", 1, 40, "a number from 0.125 to 32"),
        ],
    ),
    (
        "image 225;epochs 0-100: full;",
        [
            ("FCS022", 1, 1, "use image 224 or 240"),
        ],
    ),
    (
        "model vit_small_patch14_dinov2; image 256;epochs 0-100: full;",
        [
            ("FCS022", 1, 33, "use image 252 or 266"),
        ],
    ),
    (
        "model vit_tiny_patch16_224 (embed_dim=63, num_heads=3);epochs 0-100: full;",
        [
            ("FCS022", 1, 1, "use embed_dim=64 or position learned"),
        ],
    ),
    (
        "epochs 10-100: full;",
        [
            ("FCS014", 1, 8, "write `epochs 0-100:`"),
        ],
    ),
    (
        "epochs 0-50: full; epochs 60-100: full;",
        [
            ("FCS014", 1, 27, "write `epochs 50-100:`"),
        ],
    ),
    (
        "epochs 0-60: full; epochs 50-100: full;",
        [
            ("FCS014", 1, 27, "write `epochs 60-100:`"),
        ],
    ),
    (
        "epochs 0-0: full;",
        [
            ("FCS015", 1, 1, "a range ends after it starts; its end is not included"),
        ],
    ),
    (
        "epochs 100-0: full;",
        [
            ("FCS015", 1, 1, "a range ends after it starts; its end is not included"),
        ],
    ),
    (
        "epoch 0-100: full;",
        [
            ("FCS016", 1, 1, "did you mean `epochs`?"),
        ],
    ),
    (
        "iterations 0-100: full;",
        [
            ("FCS016", 1, 1, "units: epochs or steps"),
        ],
    ),
    (
        "0-100: full;",
        [
            ("FCS016", 1, 1, "write `epochs 0-100:`, `steps 0-100:` or `0%-100%:`"),
        ],
    ),
    (
        "0%-100: full;",
        [
            ("FCS016", 1, 1, "write `0%-100%:`"),
        ],
    ),
    (
        "epochs 0%-100%: full;",
        [
            ("FCS016", 1, 1, "remove `epochs` or `%`"),
        ],
    ),
    (
        "epochs 0-50: full; steps 50-100: full;",
        [
            ("FCS016", 1, 20, "write it in epochs"),
        ],
    ),
    (
        "steps 0-10.5: full;",
        [
            ("FCS010", 1, 9, "steps are whole"),
        ],
    ),
    (
        "length 100 epochs; 0%-120%: full;",
        [
            ("FCS010", 1, 23, "0% to 100%"),
        ],
    ),
    (
        "0%-100%: full;",
        [
            ("FCS017", 1, 1, "add `length 100 epochs;`"),
        ],
    ),
    (
        "length 100 epochs; 0%-60%: full;",
        [
            ("FCS017", 1, 23, "it must end at 100%"),
        ],
    ),
    (
        "length 100 epochs;epochs 0-100: full;",
        [
            ("FCS017", 1, 1, "remove it, or write ranges in per cent"),
        ],
    ),
    (
        "length 100; 0%-100%: full;",
        [
            ("FCS009", 1, 10, "the form is `length N epochs`"),
        ],
    ),
    (
        "length 100 steps; 0%-100%: full;",
        [
            ("FCS009", 1, 12, "the form is `length N epochs`"),
        ],
    ),
    (
        "epochs 0-100:;",
        [
            ("FCS027", 1, 1, "`full` is none"),
        ],
    ),
    (
        "epochs 0-100: batch 512;",
        [
            ("FCS027", 1, 1, "`full` is none"),
        ],
    ),
    (
        "epochs 0-100: dorp 0.5;",
        [
            ("FCS008", 1, 15, "did you mean `drop`?"),
        ],
    ),
    (
        "epochs 0-100: zigzag;",
        [
            ("FCS008", 1, 15, "clauses: drop, patch, full, auto or batch"),
        ],
    ),
    (
        "epochs 0-100: auto;",
        [
            ("FCS028", 1, 15, "add `choices drop 0 0.5 0.75 patch 16 28 32 56;`"),
        ],
    ),
    (
        "image 96;\nepochs 0-50: full; epochs 50-100: auto batch 512; epochs 100-150: auto;",
        [
            ("FCS028", 2, 35, "add `choices drop 0 0.5 0.75 patch 16 24 32 48;`"),
        ],
    ),
    (
        "choices drop 0 0.5 patch 16 32; epochs 0-100: full;",
        [
            ("FCS028", 1, 1, "remove it, or write `auto` in a phase"),
        ],
    ),
    (
        "choices drop 0 0.5 patch 16 32; epochs 0-50: full; epochs 50-100: atuo;",
        [
            ("FCS008", 1, 67, "did you mean `auto`?"),
        ],
    ),
    (
        "choices drop 0 0.5 patch 16 32; epochs 0-50 auto; epochs 50-100: full;",
        [
            ("FCS003", 1, 45, "expected `:`"),
        ],
    ),
    (
        "choices drop 0 0.5 patch 16 32; epochs 0-100: auto full;",
        [
            ("FCS018", 1, 47, "remove `auto` or `full`"),
        ],
    ),
    (
        "choices drop 0 0.5 patch 16 32; epochs 0-100: drop 0.5 auto;",
        [
            ("FCS018", 1, 56, "remove `auto` or `drop`"),
        ],
    ),
    (
        "choices drop 0 0.5 patch 16 32; epochs 0-100: auto batch 512 auto;",
        [
            ("FCS018", 1, 62, "remove one of them"),
        ],
    ),
    (
        "choices drop 0 0.5 patch 16 32; epochs 0-100: auto 0.5;",
        [
            ("FCS009", 1, 52, "write `auto`"),
        ],
    ),
    (
        "choices drop 0 0.5 patch 16 32; epochs 0-100: auto on online;",
        [
            ("FCS009", 1, 55, "write `auto`"),
        ],
    ),
    (
        "auto;epochs 0-100: full;",
        [
            ("FCS007", 1, 1, "`auto` belongs in a phase: `epochs 0-60: drop 0.5 patch 32;`"),
        ],
    ),
    (
        "choice drop 0 0.5 patch 16 32; epochs 0-100: full;",
        [
            ("FCS007", 1, 1, "did you mean `choices`?"),
        ],
    ),
    (
        "choices; epochs 0-100: auto;",
        [
            ("FCS009", 1, 7, "the form is `choices drop R [R …] patch P [P …]`"),
        ],
    ),
    (
        "choices drop; epochs 0-100: auto;",
        [
            ("FCS009", 1, 12, "the form is `choices drop R [R …] patch P [P …]`"),
        ],
    ),
    (
        "choices drop 0 0.5; epochs 0-100: auto;",
        [
            ("FCS009", 1, 18, "the form is `choices drop R [R …] patch P [P …]`"),
        ],
    ),
    (
        "choices patch 16 32 drop 0 0.5; epochs 0-100: auto;",
        [
            ("FCS009", 1, 9, "the form is `choices drop R [R …] patch P [P …]`"),
        ],
    ),
    (
        "choices drop 0 patch 16 32 on both; epochs 0-100: auto;",
        [
            ("FCS009", 1, 28, "the form is `choices drop R [R …] patch P [P …]`"),
        ],
    ),
    (
        "choices drop 0 1 patch 16 32; epochs 0-100: auto;",
        [
            ("FCS010", 1, 16, "a share from 0 to below 1, such as 0.5 or 50%"),
        ],
    ),
    (
        "choices drop 0 patch 16 32.5; epochs 0-100: auto;",
        [
            ("FCS010", 1, 25, "a whole number from 1 to 4,096"),
        ],
    ),
    (
        "choices drop 0 0.5 50% patch 16; epochs 0-100: auto;",
        [
            ("FCS011", 1, 20, "remove one of them"),
        ],
    ),
    (
        "choices drop 0 patch 16 32 16; epochs 0-100: auto;",
        [
            ("FCS011", 1, 28, "remove one of them"),
        ],
    ),
    (
        "choices drop 0 patch 16; epochs 0-100: auto;",
        [
            ("FCS010", 1, 1, "from 2 to 64: every drop with every patch, at most 16 of either"),
        ],
    ),
    (
        "image 240;choices drop 0 .1 .2 .3 .4 .5 .6 .7 .8 patch 16 20 24 30 40 48 60 80;"
        "epochs 0-100: auto;",
        [
            ("FCS010", 1, 11, "from 2 to 64: every drop with every patch, at most 16 of either"),
        ],
    ),
    (
        "choices drop 0 .05 .1 .15 .2 .25 .3 .35 .4 .45 .5 .55 .6 .65 .7 .75 .8 patch 16;"
        "epochs 0-100: auto;",
        [
            ("FCS010", 1, 1, "from 2 to 64: every drop with every patch, at most 16 of either"),
        ],
    ),
    (
        "choices drop 0 patch 24 16 8 25; epochs 0-100: auto;",
        [
            ("FCS012", 1, 22, "use 16, 28, 32, 56, or image 240"),
            ("FCS012", 1, 28, "use 16, 28, 32 or 56"),
            ("FCS012", 1, 30, "use 16, 28, 32, 56, or image 400"),
        ],
    ),
    (
        "image 225; choices drop 0 patch 24 16; epochs 0-100: auto;",
        [
            ("FCS022", 1, 1, "use image 224 or 240"),
        ],
    ),
    (
        "choices drop 0 0.5 patch 16 32; choices drop 0 0.5 patch 16 32; epochs 0-100: auto;",
        [
            ("FCS011", 1, 33, "remove one of them"),
        ],
    ),
    (
        "epochs 0-100: lr 5;",
        [
            (
                "FCS008",
                1,
                15,
                "`lr` is for the whole run: put `;` before it, as a statement of its own",
            ),
        ],
    ),
    (
        "epochs 0-100: online;",
        [
            ("FCS008", 1, 15, "write `on online` after the clause that it is for"),
        ],
    ),
    (
        "epochs 0-100: drop;",
        [
            ("FCS009", 1, 15, "such as `drop 0.5`"),
        ],
    ),
    (
        "epochs 0-100: drop 1;",
        [
            ("FCS010", 1, 20, "a share from 0 to below 1, such as 0.5 or 50%"),
        ],
    ),
    (
        "epochs 0-100: drop 1.5;",
        [
            ("FCS010", 1, 20, "a share from 0 to below 1, such as 0.5 or 50%"),
        ],
    ),
    (
        "epochs 0-100: drop 100%;",
        [
            ("FCS010", 1, 20, "a share from 0 to below 1, such as 0.5 or 50%"),
        ],
    ),
    (
        "epochs 0-100: drop 0.5 drop 0.25;",
        [
            ("FCS018", 1, 24, "remove one, or write `on target` after it"),
        ],
    ),
    (
        "epochs 0-100: drop 0.5 on both drop 0.25 on target;",
        [
            ("FCS018", 1, 32, "remove one, or write `on online` after it"),
        ],
    ),
    (
        "epochs 0-100: full drop 0.5;",
        [
            ("FCS018", 1, 15, "remove `full` or `drop`"),
        ],
    ),
    (
        "epochs 0-100: full full;",
        [
            ("FCS018", 1, 20, "remove one of them"),
        ],
    ),
    (
        "epochs 0-100: full 5;",
        [
            ("FCS009", 1, 20, "write `full`"),
        ],
    ),
    (
        "epochs 0-100: full on both;",
        [
            ("FCS009", 1, 23, "write `full`"),
        ],
    ),
    (
        "epochs 0-100: drop 0.5 on student;",
        [
            ("FCS009", 1, 27, "encoders: online, target or both"),
        ],
    ),
    (
        "epochs 0-100: drop 0.5 on onlin;",
        [
            ("FCS009", 1, 27, "did you mean `online`?"),
        ],
    ),
    (
        "method simclr; epochs 0-100: drop 0.5 on target;",
        [
            ("FCS019", 1, 42, "remove `on target`"),
        ],
    ),
    (
        "epochs 0-100: patch;",
        [
            ("FCS009", 1, 15, "such as `patch 32`"),
        ],
    ),
    (
        "epochs 0-100: patch 24;",
        [
            ("FCS012", 1, 21, "use 16, 28, 32, 56, or image 240"),
        ],
    ),
    (
        "epochs 0-100: patch 8;",
        [
            ("FCS012", 1, 21, "use 16, 28, 32 or 56"),
        ],
    ),
    (
        "epochs 0-100: patch 448;",
        [
            ("FCS012", 1, 21, "use 32, 56, 112, 224, or image 448"),
        ],
    ),
    (
        "epochs 0-100: patch 32.5;",
        [
            ("FCS010", 1, 21, "a whole number of pixels"),
        ],
    ),
    (
        "epochs 0-100: patch 50%;",
        [
            ("FCS010", 1, 21, "a whole number of pixels"),
        ],
    ),
    (
        "epochs 0-100: patch 0;",
        [
            ("FCS010", 1, 21, "a whole number of pixels"),
        ],
    ),
    (
        "image 240; epochs 0-100: patch 32;",
        [
            ("FCS012", 1, 32, "use 20, 24, 30, 40, or image 256"),
        ],
    ),
    (
        "epochs 0-100: drop 0.75 -> 0.25;",
        [
            ("FCS023", 1, 28, "such as `drop 0.75 -> 0.25 in 4`"),
        ],
    ),
    (
        "epochs 0-100: drop 0.5 in 4;",
        [
            ("FCS023", 1, 27, "write `drop A -> B`, or remove it"),
        ],
    ),
    (
        "epochs 0-100: drop 0.75 -> 0.25 in 1;",
        [
            ("FCS010", 1, 36, "a whole number from 2 to 1,000"),
        ],
    ),
    (
        "epochs 0-100: drop 0.75 -> 0.25 in 2.5;",
        [
            ("FCS010", 1, 36, "a whole number from 2 to 1,000"),
        ],
    ),
    (
        "epochs 0-100: drop 0.75 -> 0.25 in 5000;",
        [
            ("FCS010", 1, 36, "a whole number from 2 to 1,000"),
        ],
    ),
    (
        "epochs 0-100: drop 0.5 -> 0.5 in 3;",
        [
            ("FCS023", 1, 15, "write `drop 0.5`"),
        ],
    ),
    (
        "epochs 0-100: patch 56 -> 16 in 3;",
        [
            ("FCS023", 1, 33, "remove `in 3`"),
        ],
    ),
    (
        "epochs 0-100: patch 56 -> 24;",
        [
            ("FCS012", 1, 27, "use 16, 28, 32, 56, or image 240"),
        ],
    ),
    (
        "epochs 0-100: patch 32 -> 32;",
        [
            ("FCS023", 1, 15, "write `patch 32`"),
        ],
    ),
    (
        "epochs 0-100: patch 32 in 3;",
        [
            ("FCS023", 1, 27, "write `patch A -> B`, or remove it"),
        ],
    ),
    (
        "epochs 0-100: full batch 0;",
        [
            ("FCS010", 1, 26, "a whole number from 1 to 1,000,000"),
        ],
    ),
    (
        "epochs 0-100: full batch;",
        [
            ("FCS009", 1, 20, "such as `batch 512`"),
        ],
    ),
    (
        "epochs 0-100: full batch 512 batch 256;",
        [
            ("FCS018", 1, 30, "remove one of them"),
        ],
    ),
    (
        "epochs 0-100: full batch 512 -> 256;",
        [
            ("FCS009", 1, 33, "write `batch 512`"),
        ],
    ),
    (
        "epochs 0-100: full full full full full full;",
        [
            ("FCS018", 1, 1, "drop and patch, each for online and target, and batch"),
        ],
    ),
    (
        "data digits; epochs 0-100: full;",
        [
            ("FCS025", 1, 14, "write `batch 1000;` or less"),
        ],
    ),
    (
        "images 100; batch 512;epochs 0-100: full;",
        [
            ("FCS025", 1, 13, "write `batch 100;` or less"),
        ],
    ),
    (
        "images 1000; batch 100; epochs 0-50: full batch 2000; epochs 50-100: full;",
        [
            ("FCS025", 1, 43, "write `batch 1000;` or less"),
        ],
    ),
    (
        "epochs 0-0.00001: full; epochs 0.00001-1: full;",
        [
            (
                "FCS102",
                1,
                25,
                "the learning rate never falls: write a shorter one, such as `warmup 10%;`",
            ),
        ],
    ),
    (
        "steps 0-2: drop 0.75 -> 0.25 in 4;",
        [
            ("FCS024", 1, 1, "use fewer stairs, or make the range longer"),
        ],
    ),
    (
        "a 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 "
        "1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 ;epochs 0-100: full;",
        [
            ("FCS002", 1, 1, "is a `;` missing?"),
        ],
    ),
    (
        "epochs 0-100: drop 0.5-0.2;",
        [
            ("FCS003", 1, 23, "expected `->`, `;`, `in`, `on` or a word; numbers have no sign"),
        ],
    ),
    (
        "data digits; batch 500; warmup 10%; epochs 0-1: drop 0.75 -> 0.25 in 4;",
        [
            ("FCS024", 1, 37, "use fewer stairs, or make the range longer"),
        ],
    ),
    (
        "epochs 0-10: drop 0.5 patch 32; epochs 10-20: drp 0.5 patch 24; epochs 25-100: "
        "full on;\nlr x;",
        [
            ("FCS008", 1, 47, "did you mean `drop`?"),
            ("FCS012", 1, 61, "use 16, 28, 32, 56, or image 240"),
            ("FCS003", 1, 86, "expected a word"),
            ("FCS009", 2, 4, "the form is `lr X [per N]`"),
        ],
    ),
    (
        "batch 512 batch 256;epochs 0-100: full;",
        [
            ("FCS009", 1, 11, "the form is `batch N`"),
        ],
    ),
    (
        "decode big;epochs 0-100: full;",
        [
            ("FCS009", 1, 8, "the form is `decode N|none`"),
        ],
    ),
    (
        "warmup 120 epochs; epochs 0-100: full;",
        [
            (
                "FCS102",
                1,
                1,
                "the learning rate never falls: write a shorter one, such as `warmup 10%;`",
            ),
        ],
    ),
    (
        "warmup 100%;epochs 0-100: full;",
        [
            (
                "FCS102",
                1,
                1,
                "the learning rate never falls: write a shorter one, such as `warmup 10%;`",
            ),
        ],
    ),
    (
        "warmup 10%; epochs 0-50: full; epochs 50-100: drop 0.5;",
        [
            (
                "FCS101",
                1,
                32,
                "late in training its bias weighs more: put strong compression first",
            ),
        ],
    ),
    (
        "epochs 0-100: drop 0.9 patch 56;",
        [
            ("FCS103", 1, 1, "fewer than 8 show next to nothing of a view"),
        ],
    ),
    (
        "batch 64;epochs 0-100: full;",
        [
            ("FCS104", 1, 1, "128 or more are advised"),
        ],
    ),
    (
        "method dino; epochs 0-100: patch 56;",
        [
            (
                "FCS105",
                1,
                14,
                "larger patches change nothing there: use smaller ones or larger locals",
            ),
        ],
    ),
    (
        "method simclr; epochs 0-100: drop 0.5 on both;",
        [
            ("FCS106", 1, 42, "remove `on both`"),
        ],
    ),
]


def test_table_is_large_enough() -> None:
    assert len(BROKEN) >= 80


@pytest.mark.parametrize(("text", "faults"), BROKEN)
def test_every_fault_is_found_in_order(text: str | bytes, faults: Faults) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    report = check("f.fcs", data)
    found = [(d.code, *d.place, d.help) for d in report.diagnostics]
    assert found == faults
    assert report.valid == all(code > "FCS100" for code, *_ in faults)
    assert [place for _, *place, _ in found] == sorted(place for _, *place, _ in found)
    for d in report.diagnostics:
        assert d.message
        assert "\n" not in d.message + d.help
        header, line, caret, *_ = render(d).split("\n")
        row, column = d.place
        assert header.startswith(f"f.fcs:{row}:{column}: {d.severity}[{d.code}]: ")
        assert caret.index("^") - line.index("|") - 2 == column - 1


def test_every_code_is_met() -> None:
    met = {code for _, faults in BROKEN for code, *_ in faults}
    assert set(CODES) - met == {"FCS026"}


def test_one_pass_finds_faults_of_every_kind_at_once() -> None:
    text = (
        "method dinoo;\nbatch 512\nlr x;\n"
        "epochs 0-10: drp 0.5 patch 24;\nepochs 12-20: drop 2 on boht;\nimage 225;\n"
    )
    codes = [d.code for d in check("f.fcs", text.encode()).diagnostics]
    assert codes == ["FCS009", "FCS004", "FCS009", "FCS008", "FCS014", "FCS010", "FCS022"]


def test_faults_stop_at_a_limit() -> None:
    text = "".join(f"epochs {i}-{i + 1}: drp 0.5;\n" for i in range(2000))
    report = check("f.fcs", text.encode())
    assert len(report.diagnostics) == 501
    assert report.diagnostics[-1].code == "FCS026"


def test_a_file_of_a_megabyte_and_a_byte_is_refused() -> None:
    report = check("f.fcs", b"epochs 0-1: full;".ljust(1_000_000) + b"\n")
    assert [d.code for d in report.diagnostics] == ["FCS002"]
    assert check("f.fcs", b"warmup 1%; epochs 0-1: full;".ljust(1_000_000)).valid


def test_carets_stay_on_screen_in_long_lines() -> None:
    text = f'data "{"x" * 3000}"; batch big; epochs 0-1: full; warmup 0%;'
    (diagnostic,) = check("f.fcs", text.encode()).diagnostics
    _, line, caret, _ = render(diagnostic).split("\n")
    assert len(line) < 120
    assert line[caret.index("^") :].startswith("big")


def test_terminal_escapes_are_not_passed_on() -> None:
    for diagnostic in check("\x1bfile", b"lr \x1b[31m;\nbatch '\x07';").diagnostics:
        body = render(diagnostic).split("\n", 1)[1]
        assert all(c.isprintable() or c == "\n" for c in body)
