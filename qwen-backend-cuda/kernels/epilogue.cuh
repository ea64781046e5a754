// The epilogues of a product, the same for all kernels that compute one.
//
// An epilogue says how many pairs of rows a matrix has, which two rows of the matrix a pair is, and what to do with a
// token's two sums. See Product in params.cuh for the orders and what is written. Rows of a pair that are beyond the
// matrix (the last pair of an odd number of rows) are clamped by `matrix_rows`: their sum is computed and dropped.
#pragma once
#include "math.cuh"
#include "store.cuh"

// The two rows of a pair.
struct PairRows {
    u32 first, second;
};

DEVICE PairRows neighbours(u32 pair) {
    return PairRows{2 * pair, 2 * pair + 1};
}

// A token's outputs of these rows.
DEVICE float* outputs(const Product& p, u32 token) {
    return p.out + size_t(token) * p.out_rows + p.first_row;
}

namespace epilogue {

// Pairs of neighbours, the last of an odd number of rows half empty.
struct in_order {
    DEVICE u32 pairs(const Product& p) {
        return div_up(p.rows, 2);
    }
    DEVICE PairRows rows(const Product&, u32 pair) {
        return neighbours(pair);
    }
};

struct write : in_order {
    DEVICE void emit(const Product& p, u32 token, u32 pair, float first, float second) {
        const PairRows row = neighbours(pair);
        float* const out = outputs(p, token);
        const float* const bias = p.bias ? p.bias + p.first_row : nullptr;
        out[row.first] = bias ? first + bias[row.first] : first;
        if (row.second < p.rows) {
            out[row.second] = bias ? second + bias[row.second] : second;
        }
    }
};

struct add : in_order {
    DEVICE void emit(const Product& p, u32 token, u32 pair, float first, float second) {
        const PairRows row = neighbours(pair);
        float* const out = outputs(p, token);
        out[row.first] += first;
        if (row.second < p.rows) {
            out[row.second] += second;
        }
    }
};

struct silu {
    DEVICE u32 pairs(const Product& p) {
        return p.rows / 2;
    }
    DEVICE PairRows rows(const Product& p, u32 pair) {
        return PairRows{pair, pair + p.rows / 2};
    }
    DEVICE void emit(const Product& p, u32 token, u32 pair, float gate, float up) {
        p.out[size_t(token) * (p.rows / 2) + pair] = ::silu(gate) * up;
    }
};

struct heads {
    // The head of a pair, of those of the whole matrix.
    DEVICE u32 head_of(const Product& p, u32 pair) {
        return p.first_row / p.head_dim + pair / (p.head_dim / 2);
    }
    DEVICE u32 pairs(const Product& p) {
        return p.rows / 2;
    }
    DEVICE PairRows rows(const Product& p, u32 pair) {
        if (head_of(p, pair) >= p.num_attention_heads + p.num_key_value_heads) {
            return neighbours(pair);
        }
        const u32 half = p.head_dim / 2;
        const u32 first = pair / half * p.head_dim + pair % half;
        return PairRows{first, first + half};
    }
    DEVICE void emit(const Product& p, u32 token, u32 pair, float first, float second) {
        const u32 half = p.head_dim / 2;
        const u32 head = head_of(p, pair);
        const u32 i = pair % half;
        const PairRows row = rows(p, pair);
        float2 pair_of = {first, second};
        if (p.bias) {
            const float* const bias = p.bias + p.first_row;
            pair_of = float2{first + bias[row.first], second + bias[row.second]};
        }
        const u32 first_value = p.num_attention_heads + p.num_key_value_heads;
        if (head < first_value) {
            const float* const angle = p.cos_sin + size_t(token) * p.head_dim + i;
            pair_of = rotate(pair_of, angle[0], angle[half]);
        }
        if (head < p.num_attention_heads) {
            float* const out = outputs(p, token);
            out[row.first] = pair_of.x;
            out[row.second] = pair_of.y;
            return;
        }
        const u32 slot = p.slot_mapping[token];
        if (slot >= p.num_slots) {
            return;
        }
        if (head < first_value) {
            const size_t at = slot_start(head - p.num_attention_heads, slot, p.num_slots, p.head_dim) + i;
            store_as(p.keys, p.key_encoding, at, pair_of.x);
            store_as(p.keys, p.key_encoding, at + half, pair_of.y);
        } else {
            const size_t at = slot_start(head - first_value, slot, p.num_slots, p.head_dim) + 2 * i;
            store_as(p.values, p.value_encoding, at, pair_of.x);
            store_as(p.values, p.value_encoding, at + 1, pair_of.y);
        }
    }
};

// The products with gate, or with up, when those with the other are in `out`.
struct gated : in_order {
    DEVICE float of(const Product& p, float held, float sum) {
        return p.epilogue == EPILOGUE_GATE ? ::silu(sum) * held : ::silu(held) * sum;
    }
    DEVICE void emit(const Product& p, u32 token, u32 pair, float first, float second) {
        const PairRows row = neighbours(pair);
        float* const out = outputs(p, token);
        out[row.first] = of(p, out[row.first], first);
        if (row.second < p.rows) {
            out[row.second] = of(p, out[row.second], second);
        }
    }
};

// The one that `p.epilogue` names: the same for a whole grid.
struct any {
    DEVICE u32 pairs(const Product& p) {
        const bool whole = p.epilogue == EPILOGUE_SILU || p.epilogue == EPILOGUE_HEADS;
        return whole ? p.rows / 2 : div_up(p.rows, 2);
    }
    DEVICE PairRows rows(const Product& p, u32 pair) {
        switch (p.epilogue) {
            case EPILOGUE_SILU:
                return silu::rows(p, pair);
            case EPILOGUE_HEADS:
                return heads::rows(p, pair);
            default:
                return neighbours(pair);
        }
    }
    DEVICE void emit(const Product& p, u32 token, u32 pair, float first, float second) {
        switch (p.epilogue) {
            case EPILOGUE_WRITE:
                return write::emit(p, token, pair, first, second);
            case EPILOGUE_ADD:
                return add::emit(p, token, pair, first, second);
            case EPILOGUE_SILU:
                return silu::emit(p, token, pair, first, second);
            case EPILOGUE_HEADS:
                return heads::emit(p, token, pair, first, second);
            default:
                return gated::emit(p, token, pair, first, second);
        }
    }
};

}  // namespace epilogue

// The rows of the matrix to read for a pair, clamped to the matrix: sums of a clamped row are not used.
template <class Epilogue>
DEVICE PairRows matrix_rows(const Product& p, u32 pair) {
    const PairRows row = Epilogue::rows(p, smaller(pair, Epilogue::pairs(p) - 1));
    return PairRows{row.first, smaller(row.second, p.rows - 1)};
}
