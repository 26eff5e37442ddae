#!/usr/bin/env bash
# Trains one model on one language and says where the results are. Every variable below can be set from outside:
#
#   bash code.sh
#   beta=1.5 max_iters=2000 rep=2 bash code.sh
#
# A run that is complete is not trained again, one that was interrupted goes on; resume=restart begins anew.
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

# ---------------------------------------------------------------------------------------------------------------------

for seed in seed_rules seed_sample seed_model; do
    if [ "${!seed}" = random ]; then
        printf -v "$seed" %d "$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')"
        echo "$seed=${!seed}"
    fi
done

if [ -z "$num_tokens" ]; then
    # a depth that is no small number is left to main.py, which says what is wrong with it
    [[ $num_layers =~ ^[1-9][0-9]?$ ]] && num_tokens=$((2 ** num_layers)) || num_tokens=2
fi

# 2.0 and 2 are the same language, and have the same name
[[ $beta =~ ^[0-9]+\.?[0-9]*$ ]] && rules=b$(LC_ALL=C printf %g "$beta") || rules=b$beta
[ "$dataset" = rhm ] && rules=m$num_synonyms
outname=${outname:-$results_dir/${dataset}_${num_features}L${num_layers}_${rules}_ts${train_size}_$rep}

source ./environment.sh
find_python requirements.txt "torch, numpy, matplotlib, tqdm"

options=()
for name in device threads compile dtype dataset num_features num_layers num_tokens beta num_synonyms regime train_size \
    batch_size accumulation test_size input_format whitening model depth embedding_dim num_heads ffwd_size dropout \
    objective optim lr momentum weight_decay grad_clip scheduler warmup_time decay_time max_iters max_epochs \
    loss_threshold seed_rules seed_sample seed_model print_freq save_freq resume outname; do
    options+=("--$name=${!name}")
done
for name in deterministic tie_weights checkpoints tensorboard; do
    case ${!name} in
        1 | true | yes) options+=("--$name") ;;
        0 | false | no) options+=("--no-$name") ;;
        *) echo "error: $name=${!name} is neither 1 nor 0: use one of them" >&2 && exit 2 ;;
    esac
done

exec "$python" RLM_clean/main.py "${options[@]}"
