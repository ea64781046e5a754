//! [`Backend`] on a wgpu device: the operations by name. Each one is in a file of [`crate::ops`], which checks its
//! operands, chooses a kernel and queues it.

use std::sync::Arc;

use qwen_core::backend::Limits;
use qwen_core::backend::recorder::{self, warmup_shapes};
use qwen_core::backend::{
    Add, AddRows, Argmax, DeviceInfo, Embed, GateUpSilu, GatherRows, Interrupt, KvSpec, Linear, LinearAdd, ModelShape,
    PagedAttention, QkvRopeStore, RmsNorm, Rope, SiluAndMul, StepKey, StoreKv, WeightView,
};
use qwen_core::{Backend, Footprint, Result};

use crate::adapter::AdapterInfo;
use crate::executor::{WgpuBackend, WgpuBuffer, WgpuIndices, WgpuKv, WgpuWeight};
use crate::geometry::TILE_FROM;
use crate::kv::Store;
use crate::ops;
use crate::weight::Matrix;

impl Backend for WgpuBackend {
    type Buffer = WgpuBuffer;
    type Indices = WgpuIndices;
    type Weight = WgpuWeight;
    type Kv = WgpuKv;

    fn info(&self) -> DeviceInfo {
        let AdapterInfo { name, api, memory, .. } = self.adapter();
        DeviceInfo { name: format!("wgpu ({name}, {api})"), precision: self.precision, memory_available: *memory }
    }

    fn footprint(&self) -> Box<dyn Footprint> {
        Box::new(self.memory_model())
    }

    fn prepare(&mut self, limits: &Limits, shape: &ModelShape) -> Result<()> {
        self.allocate_workspace(limits, shape)
    }

    fn alloc(&mut self, len: usize) -> Result<WgpuBuffer> {
        Ok(WgpuBuffer(self.words(len)?))
    }

    fn alloc_indices(&mut self, len: usize) -> Result<WgpuIndices> {
        Ok(WgpuIndices { words: self.words(len)?, largest: Arc::default() })
    }

    fn load(&mut self, view: &WeightView<'_>) -> Result<WgpuWeight> {
        Ok(WgpuWeight(Matrix::load(&self.gpu.device, view)?))
    }

    fn kv(&mut self, spec: &KvSpec) -> Result<WgpuKv> {
        Ok(WgpuKv(Store::new(&self.gpu.device, spec)?))
    }

    fn write(&mut self, dst: &mut WgpuBuffer, src: &[f32]) -> Result<()> {
        ops::host::write(self, "write", &dst.0, src.iter().map(|value| value.to_le_bytes()))
    }

    fn write_indices(&mut self, dst: &mut WgpuIndices, src: &[u32]) -> Result<()> {
        ops::host::write(self, "write_indices", &dst.words, src.iter().map(|value| value.to_le_bytes()))?;
        dst.largest.write(src);
        Ok(())
    }

    fn read(&mut self, src: &WgpuBuffer, dst: &mut [f32]) -> Result<()> {
        ops::host::read(self, "read", &src.0, dst, f32::from_le_bytes)
    }

    fn read_indices(&mut self, src: &WgpuIndices, dst: &mut [u32]) -> Result<()> {
        ops::host::read(self, "read_indices", &src.words, dst, u32::from_le_bytes)
    }

    fn copy_blocks(&mut self, kv: &mut WgpuKv, pairs: &[(u32, u32)]) -> Result<()> {
        ops::copy_blocks::copy_blocks(self, &kv.0, pairs)
    }

    fn read_blocks(&mut self, kv: &WgpuKv, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        ops::kv_blocks::read_blocks(self, &kv.0, blocks, out)
    }

    fn write_blocks(&mut self, kv: &mut WgpuKv, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        ops::kv_blocks::write_blocks(self, &kv.0, blocks, bytes)
    }

    fn trim(&mut self) {
        self.gpu.pipelines.forget_groups();
    }

    fn synchronize(&mut self) -> Result<()> {
        self.gpu.flush("synchronize")?;
        self.gpu.device.wait("synchronize")
    }

    fn embed(&mut self, op: Embed<'_, Self>) -> Result<()> {
        ops::embed::embed(self, op)
    }

    fn linear(&mut self, op: Linear<'_, Self>) -> Result<()> {
        ops::linear::linear(self, op)
    }

    fn rms_norm(&mut self, op: RmsNorm<'_, Self>) -> Result<()> {
        ops::rms_norm::rms_norm(self, op)
    }

    fn rope(&mut self, op: Rope<'_, Self>) -> Result<()> {
        ops::rope::rope(self, op)
    }

    fn store_kv(&mut self, op: StoreKv<'_, Self>) -> Result<()> {
        ops::store_kv::store_kv(self, op)
    }

    fn paged_attention(&mut self, op: PagedAttention<'_, Self>) -> Result<()> {
        ops::attention::paged_attention(self, op)
    }

    fn silu_and_mul(&mut self, op: SiluAndMul<'_, Self>) -> Result<()> {
        ops::silu_and_mul::silu_and_mul(self, op)
    }

    fn add(&mut self, op: Add<'_, Self>) -> Result<()> {
        ops::add::add(self, op)
    }

    fn gather_rows(&mut self, op: GatherRows<'_, Self>) -> Result<()> {
        ops::gather_rows::gather_rows(self, op)
    }

    fn add_rows(&mut self, op: AddRows<'_, Self>) -> Result<()> {
        ops::add_rows::add_rows(self, op)
    }

    fn argmax(&mut self, op: Argmax<'_, Self>) -> Result<()> {
        ops::argmax::argmax(self, op)
    }

    fn qkv_rope_store(&mut self, op: QkvRopeStore<'_, Self>) -> Result<()> {
        ops::linear::qkv_rope_store(self, op)
    }

    fn gate_up_silu(&mut self, op: GateUpSilu<'_, Self>) -> Result<()> {
        ops::linear::gate_up_silu(self, op)
    }

    fn linear_add(&mut self, op: LinearAdd<'_, Self>) -> Result<()> {
        ops::linear::linear_add(self, op)
    }

    fn warmup_shapes(&self) -> Vec<StepKey> {
        // A short prompt and a long one, tokens of one and of two sequences: each uses different kernels.
        warmup_shapes(&[2, TILE_FROM], &[1, 2])
    }

    fn step(
        &mut self,
        key: StepKey,
        interrupt: &Interrupt,
        body: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.gpu.device.check("step")?;
        recorder::run(self, key, interrupt, body)
    }
}
