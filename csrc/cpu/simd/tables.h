// How the parts of one instruction set's kernel table are filled.
#pragma once

namespace uniattn::cpu {

struct Kernels;

namespace UNIATTN_ISA {
void fill_attention(Kernels& table);
void fill_attention_backward(Kernels& table);
void fill_layers(Kernels& table);
void fill_cross_entropy(Kernels& table);
void fill_decode(Kernels& table);
void fill_streaming_linear(Kernels& table);
void fill_double_linear(Kernels& table);
}  // namespace UNIATTN_ISA

}  // namespace uniattn::cpu
