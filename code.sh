#!/usr/bin/env bash
# Trains one model on one language and says where the results are. Every variable below can be set from outside:
#
#   bash code.sh
#   beta=1.5 max_iters=2000 rep=2 bash code.sh
#
# A run that is complete is not trained again, one that was interrupted goes on; resume=restart begins anew.
#
# Several values of a variable, or repetitions, make a sweep of runs (docs/sweeps.md):
#
#   beta="0.8 1.2 1.8" num_features="32 64" repetitions=8 bash code.sh
set -euo pipefail
cd "$(dirname "$0")"
if [ $# -gt 0 ]; then
    echo "error: code.sh takes no arguments, but got '$1': set variables, as in beta=1.5 bash code.sh" >&2
    exit 2
fi

# ---- machine
device=${device:-auto}                  # auto (cuda, mps or cpu, the first there is), cpu, cuda, cuda:1, mps
threads=${threads:-auto}                # threads of the CPU; auto: chosen from the size of the step
compile=${compile:-auto}                # compile each step: on, off, or auto (on for long runs)
dtype=${dtype:-float32}                 # float32 or bfloat16 (matrix products only)
deterministic=${deterministic:-0}       # 1: only deterministic algorithms, on GPUs too

# ---- language
dataset=${dataset:-rlm}                 # rlm: Random Language Model; rhm: Random Hierarchy Model
num_features=${num_features:-128}       # v, the number of symbols
num_layers=${num_layers:-1}             # L, the depth of the tree
num_tokens=${num_tokens:-}              # tokens that count, the last is the target; empty: 2^num_layers
beta=${beta:-2}                         # inverse temperature of the rules (rlm); they freeze at 2
num_synonyms=${num_synonyms:-8}         # productions of each symbol (rhm)

# ---- data
regime=${regime:-online}                # online: every batch is new; offline: train_size sequences
train_size=${train_size:-$((2 ** 15))}  # names the file; used when regime=offline
batch_size=${batch_size:-64}
accumulation=${accumulation:-1}         # batches whose gradients are averaged in one step
test_size=${test_size:-4096}
input_format=${input_format:-long}      # long (indices) or onehot
whitening=${whitening:-0}               # 1: one-hot inputs with mean 0 and variance 1

# ---- model
model=${model:-transformer_mlm}         # transformer_mlm, transformer_clm or fcn
depth=${depth:-1}
embedding_dim=${embedding_dim:-64}
num_heads=${num_heads:-1}
ffwd_size=${ffwd_size:-4}               # width of the feed-forward layers over embedding_dim
dropout=${dropout:-0.0}
tie_weights=${tie_weights:-0}           # 1: the head uses the token embeddings

# ---- training
objective=${objective:-last}            # last: predict x_n; all: every next token (transformer_clm)
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
seed_sample=${seed_sample:-67890}
seed_model=${seed_model:-11111}

# ---- output
print_freq=${print_freq:-1024}          # steps between two evaluations
save_freq=${save_freq:-2}               # checkpoints at steps spaced by 2^(1/save_freq)
checkpoints=${checkpoints:-1}           # 0: keep the last and the best model only
tensorboard=${tensorboard:-0}           # 1: curves for TensorBoard too
resume=${resume:-auto}                  # auto, require or restart
results_dir=${results_dir:-results}     # relative to the folder of this script
rep=${rep:-1}                           # the number of a repetition, part of the name

# ---- sweeps: several values are separated by spaces; first..last:number is a range, 1e-4..1e-1:7log one by factors
repetitions=${repetitions:-}            # repeat each run with so many other seeds
vary=${vary:-rules,sample,model}        # the seeds that do
seed=${seed:-0}                         # what they are derived from
workers=${workers:-auto}                # processes; auto: as many as the cores or the GPUs allow
launcher=${launcher:-local}             # local or slurm, which takes partition, minutes, memory, gpus, cpus and notice
dry_run=${dry_run:-0}                   # 1: only list the runs, and how long they will take

# ---------------------------------------------------------------------------------------------------------------------

names=(device threads compile dtype dataset num_features num_layers beta num_synonyms regime train_size batch_size
    accumulation test_size input_format whitening model depth embedding_dim num_heads ffwd_size dropout objective optim
    lr momentum weight_decay grad_clip scheduler warmup_time decay_time max_iters max_epochs loss_threshold seed_rules
    seed_sample seed_model print_freq save_freq resume)
switches=(deterministic tie_weights checkpoints tensorboard)

for name in seed_rules seed_sample seed_model; do
    if [ "${!name}" = random ]; then
        printf -v "$name" %d "$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')"
        echo "$name=${!name}"
    fi
done

several() { [[ $1 == *[[:space:]]* || $1 == *..*:* ]]; }

grid=()
varied=
for name in "${names[@]}" num_tokens "${switches[@]}"; do
    if several "${!name}"; then
        set -f # a value is no pattern of files
        values=(${!name})
        set +f
        grid+=(--grid "$name=$(IFS=, && echo "${values[*]}")")
        varied+=_$name
    fi
done
[ -n "$varied$repetitions" ] && sweep=1 || sweep=

if [ -z "$num_tokens" ] && [ -z "$sweep" ]; then
    # a depth that is no small number is left to main.py, which says what is wrong with it
    [[ $num_layers =~ ^[1-9][0-9]?$ ]] && num_tokens=$((2 ** num_layers)) || num_tokens=2
fi

# 2.0 and 2 are the same language, and have the same name
[[ $beta =~ ^[0-9]+\.?[0-9]*$ ]] && rules=b$(LC_ALL=C printf %g "$beta") || rules=b$beta
[ "$dataset" = rhm ] && rules=m$num_synonyms
if [ -n "$sweep" ]; then
    # what all runs share, then what varies
    several "$dataset" && run=languages || run=$dataset
    several "$num_features" && size= || size=$num_features
    several "$num_layers" || size+=L$num_layers
    run+=${size:+_$size}
    several "$rules" || run+=_$rules
    several "$train_size" || run+=_ts$train_size
    run+=_${rep}_over${varied:-_seeds}
else
    run=${dataset}_${num_features}L${num_layers}_${rules}_ts${train_size}_$rep
fi
outname=${outname:-$results_dir/$run}

source ./environment.sh
find_python requirements.txt "torch, numpy, matplotlib, tqdm"

options=("--outname=$outname")
[ -n "$num_tokens" ] && names+=(num_tokens)
for name in "${names[@]}"; do
    several "${!name}" || options+=("--$name=${!name}")
done
for name in "${switches[@]}"; do
    case ${!name} in
        1 | true | yes) options+=("--$name") ;;
        0 | false | no) options+=("--no-$name") ;;
        *" "*) ;;
        *) echo "error: $name=${!name} is neither 1 nor 0: use one of them" >&2 && exit 2 ;;
    esac
done

if [ -n "$sweep" ]; then
    [ -n "$repetitions" ] && grid+=("--repetitions=$repetitions" "--vary=$vary" "--seed=$seed")
    [ "$launcher" = slurm ] && for name in partition minutes memory gpus cpus notice; do
        [ -z "${!name:-}" ] || grid+=("--$name=${!name}")
    done
    [ "$dry_run" = 1 ] && grid+=(--dry-run)
    exec "$python" -m RLM_clean.sweep "${options[@]}" "${grid[@]}" "--workers=$workers" "--launcher=$launcher"
fi
exec "$python" RLM_clean/main.py "${options[@]}"
