//! What a kernel takes to run, made once and kept: a pipeline for each shader, a bind group for each set of arrays, and
//! their layouts.

use std::collections::HashMap;

use qwen_core::Result;

use crate::gpu::{Binding, Gpu};
use crate::params::WORDS;
use crate::pipeline_cache::Cache;
use crate::shader::Shader;

/// What has been made on a device.
#[derive(Debug, Default)]
pub(crate) struct Made {
    layouts: HashMap<Vec<bool>, Layout>,
    pipelines: HashMap<Shader, wgpu::ComputePipeline>,
    groups: HashMap<GroupKey, wgpu::BindGroup>,
}

/// Each array with its stretch, and whether it is written.
type GroupKey = Vec<(u64, u64, u64, bool)>;

#[derive(Debug)]
struct Layout {
    group: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

/// A kernel that is ready to run: everything but the size of its grid.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) group: wgpu::BindGroup,
    /// Where its parameters lie.
    pub(crate) offset: u32,
}

impl Gpu {
    /// Make `shader` ready to run on `bindings`, in the order of its own from 1 on, with the parameters at `offset`. What
    /// is made is kept for the next time with `keep`, and the arrays with it.
    pub(crate) fn prepare<'a>(
        &mut self,
        op: &str,
        shader: &Shader,
        bindings: &[Binding<'a>],
        offset: u32,
        keep: bool,
    ) -> Result<Prepared> {
        self.own(op, bindings.iter().map(|binding| binding.array))?;
        let limit = self.limits.max_storage_buffer_binding_size;
        // The whole array where it can be bound: then steps of different lengths share their bind groups.
        let whole = |binding: &Binding<'a>| match binding.array.buffer.size() {
            size if binding.offset == 0 && size <= limit => Binding { bytes: size, ..*binding },
            _ => *binding,
        };
        let bindings: Vec<Binding<'a>> = bindings.iter().map(whole).collect();
        if let Some(binding) = bindings.iter().find(|binding| binding.bytes > limit) {
            let reason = format!("an array of {} bytes exceeds the device's {limit} a binding", binding.bytes);
            return Err(self.error(op, reason));
        }
        let access: Vec<bool> = bindings.iter().map(|binding| binding.writable).collect();
        let pipeline = self.pipeline(op, shader, &access)?;
        let group = self.group(op, &access, &bindings, keep)?;
        Ok(Prepared { pipeline, group, offset })
    }

    fn pipeline(&mut self, op: &str, shader: &Shader, access: &[bool]) -> Result<wgpu::ComputePipeline> {
        if let Some(pipeline) = self.made.pipelines.get(shader) {
            return Ok(pipeline.clone());
        }
        #[cfg(test)]
        crate::shader::tests::assert_is_a_variant(shader);
        self.stats.made(2);
        self.layout(access);
        let make = || {
            let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(shader.kernel),
                source: wgpu::ShaderSource::Wgsl(shader.compose().into()),
            });
            self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(shader.kernel),
                layout: self.made.layouts.get(access).map(|layout| &layout.pipeline),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Workgroup memory is written before it is read.
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: self.cache.as_ref().map(Cache::pipelines),
            })
        };
        let pipeline = self.guarded(op, 0, make)?;
        self.made.pipelines.insert(shader.clone(), pipeline.clone());
        Ok(pipeline)
    }

    fn layout(&mut self, access: &[bool]) -> &Layout {
        let Gpu { device, made, stats, .. } = self;
        made.layouts.entry(access.to_vec()).or_insert_with(|| {
            stats.made(2);
            let entry =
                |binding: usize, ty: wgpu::BufferBindingType, has_dynamic_offset: bool| wgpu::BindGroupLayoutEntry {
                    binding: binding as u32,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
                    count: None,
                };
            let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, true)];
            entries.extend(
                access.iter().enumerate().map(|(i, writable)| {
                    entry(i + 1, wgpu::BufferBindingType::Storage { read_only: !writable }, false)
                }),
            );
            let group =
                device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
            let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&group)],
                immediate_size: 0,
            });
            Layout { group, pipeline }
        })
    }

    fn group(&mut self, op: &str, access: &[bool], bindings: &[Binding<'_>], keep: bool) -> Result<wgpu::BindGroup> {
        let key: GroupKey = bindings.iter().map(|b| (b.array.id, b.offset, b.bytes, b.writable)).collect();
        if let Some(group) = self.made.groups.get(&key) {
            return Ok(group.clone());
        }
        self.stats.made(1);
        self.layout(access);
        let binding = |buffer, offset, size| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) })
        };
        let mut entries =
            vec![wgpu::BindGroupEntry { binding: 0, resource: binding(self.params.buffer(), 0, 4 * WORDS as u64) }];
        entries.extend(bindings.iter().enumerate().map(|(i, b)| wgpu::BindGroupEntry {
            binding: i as u32 + 1,
            resource: binding(&b.array.buffer, b.offset, b.bytes),
        }));
        let layout = &self.made.layouts[access].group;
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
        let group = self.guarded(op, 0, || self.device.create_bind_group(&descriptor))?;
        if keep {
            self.made.groups.insert(key, group.clone());
        }
        Ok(group)
    }
}
