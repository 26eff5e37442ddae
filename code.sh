#!/usr/bin/env bash
# Trains one model on one language and says where the results are. Every variable below can be set from outside:
#
#   bash code.sh
#   beta=1.5 max_iters=2000 rep=2 bash code.sh
#   bash code.sh --beta 1.5 --max_iters 2000 --rep 2
#
# A run that is complete is not trained again, and one that was interrupted goes on; resume=restart begins anew.
#
# Several values of a variable, or repetitions, make a sweep of runs (docs/sweeps.md):
#
#   beta="0.8 1.2 1.8" num_features="32 64" repetitions=8 bash code.sh
set -euo pipefail
cd "$(dirname "$0")"

# ---- machine
device=${device:-auto}                  # auto (cuda, mps or cpu, the first there is), cpu, cuda, cuda:1, mps
threads=${threads:-auto}                # threads of the CPU; auto: chosen from the size of the step
compile=${compile:-auto}                # compile each step: on, off, or auto (on for long runs)
dtype=${dtype:-float32}                 # float32 or bfloat16 (matrix products only)
deterministic=${deterministic:-0}       # 1: only deterministic algorithms, on GPUs too

# ---- language
dataset=${dataset:-rlm}                 # rlm: Random Language Model; rhm: Random Hierarchy Model; unambiguous
num_features=${num_features:-128}       # v, the number of symbols
num_layers=${num_layers:-1}             # L, the depth of the tree
num_tokens=${num_tokens:-}              # tokens that count, the last is the target; empty: 2^num_layers
beta=${beta:-2}                         # inverse temperature of the rules (rlm); they freeze at 2
num_synonyms=${num_synonyms:-8}         # productions of each symbol (rhm)
zipf=${zipf:-0}                         # a: Zipf's law k^-(1 + a) for the productions (rhm); 0: equally likely
zipf_levels=${zipf_levels:-leaves}      # levels of rules with Zipf's law: leaves, all, or numbers from 0 (the root)
sigma=${sigma:-1}                       # spread of the logarithms of the weights of pairs (unambiguous)
filtered=${filtered:--1}                # k: removes the correlations above sub-trees of 2^k tokens; -1: none
num_classes=${num_classes:-0}           # symbols that the root can have; 0: all

# ---- data
regime=${regime:-online}                # online (new batches), offline (train_size sequences), population (exact loss)
train_size=${train_size:-$((2 ** 15))}  # names the file; used when regime=offline
batch_size=${batch_size:-64}
accumulation=${accumulation:-1}         # batches whose gradients are averaged in one step
test_size=${test_size:-4096}
input_format=${input_format:-long}      # long (indices) or onehot
whitening=${whitening:-0}               # 1: one-hot inputs with mean 0 and variance 1

# ---- model
model=${model:-transformer_mlm}         # transformer_mlm, transformer_clm, transformer_bert, fcn, cnn, lcn or gru
depth=${depth:-1}
embedding_dim=${embedding_dim:-64}
num_heads=${num_heads:-1}
ffwd_size=${ffwd_size:-4}               # width of the feed-forward layers over embedding_dim; 0: attention only
positions=${positions:-learned}         # learned, rope (rotary) or none
parametrisation=${parametrisation:-standard}  # standard, or mup: learning rates transfer over embedding_dim
dropout=${dropout:-0.0}
tie_weights=${tie_weights:-0}           # 1: the head uses the token embeddings

# ---- training
objective=${objective:-last}            # last, all (every next token), root, masked (hidden tokens) or denoise
mask_rate=${mask_rate:-0}               # masked: fraction of hidden tokens; 0: drawn for each sequence
noise=${noise:-0}                       # denoise: probability of a random token; 0: drawn for each sequence
optim=${optim:-sgd}                     # sgd or adam
lr=${lr:-1e-3}
momentum=${momentum:-0.9}
weight_decay=${weight_decay:-0.0}
grad_clip=${grad_clip:-0.0}             # largest norm of the gradient; 0: no limit
scheduler=${scheduler-cosine-warmup}    # none (or empty), cosine or cosine-warmup
warmup_time=${warmup_time:-8}
decay_time=${decay_time:-262144}        # steps down to lr/10
max_iters=${max_iters:-30000}
max_epochs=${max_epochs:-100}           # used when regime=offline
loss_threshold=${loss_threshold:-1e-3}  # stop at this training loss

# ---- seeds: numbers, or `random` to draw one
seed_rules=${seed_rules:-12345}
seed_sample=${seed_sample:-${seed_samples:-67890}}
seed_model=${seed_model:-11111}

# ---- output
print_freq=${print_freq:-1024}          # steps between two evaluations
save_freq=${save_freq:-2}               # checkpoints at steps spaced by 2^(1/save_freq)
bp_records=${bp_records:-0}             # 1: records hold the divergences from BP_k (docs/tasks.md)
checkpoints=${checkpoints:-1}           # 0: keep the last and the best model only
tracker=${tracker:-none}                # none, wandb (offline), trackio or tensorboard: shows the records too
tensorboard=${tensorboard:-0}           # 1: TensorBoard, beside any other tracker
resume=${resume:-auto}                  # auto, require or restart
results_dir=${results_dir:-results}     # relative to the folder of this script
rep=${rep:-1}                           # the number of a repetition, part of the name
outname=${outname:-}                    # path of the files, from the folder of this script; empty: made from the options

# ---- sweeps: several values are separated by spaces; first..last:number is a range, 1e-4..1e-1:7log one by factors
repetitions=${repetitions:-}            # repeat each run with so many other seeds
vary=${vary:-rules,sample,model}        # the seeds that differ
seed=${seed:-0}                         # the number that they derive from
threshold=${threshold:-}                # a level: how many sequences (train_size) teach it, see docs/scaling.md
workers=${workers:-auto}                # processes; auto: as many as the cores or the GPUs allow
dry_run=${dry_run:-0}                   # 1: list what would run, and write nothing
launcher=${launcher:-local}             # local, or slurm: then each worker asks for what follows; empty: its default
partition=${partition:-}
minutes=${minutes:-}
memory=${memory:-}
gpus=${gpus:-}
cpus=${cpus:-}
notice=${notice:-}

# ---------------------------------------------------------------------------------------------------------------------

if [ "${1:-}" = --help ]; then
    sed '/^# -----/,$d' "${0##*/}"
    exit
fi

# RLM_clean/sweep/script.py reads these variables and the arguments, and starts one run or a sweep.
variables=()
while IFS= read -r line; do
    [[ $line =~ ^([a-z_]+)=\$\{ ]] && name=${BASH_REMATCH[1]} && variables+=("$name=${!name}")
done <"${0##*/}"

source ./environment.sh
if [ $# -gt 0 ]; then
    # A misspelt option is refused before anything is installed.
    base=$(newer_python) && "$base" -m RLM_clean.sweep.script --check "${variables[@]}" -- "$@" || exit 2
fi
find_python requirements.txt "torch, numpy, matplotlib, scipy, tqdm"
exec "$python" -m RLM_clean.sweep.script "${variables[@]}" -- "$@"
