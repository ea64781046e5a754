//! Cached objects that kernels need: a pipeline per shader, a bind group per set of arrays, and their layouts.

use std::collections::HashMap;

use qwen_core::{HumanBytes, Result};

use crate::runtime::array::Binding;
use crate::runtime::device::Device;
use crate::runtime::params::{Params, WORDS};
use crate::runtime::pipeline_cache::PipelineCache;
use crate::shader::Shader;

/// The pipelines, bind groups and layouts of a device.
#[derive(Debug, Default)]
pub(crate) struct Pipelines {
    /// Keyed by which arrays of a kernel are written.
    layouts: HashMap<Vec<bool>, Layout>,
    pipelines: HashMap<Shader, wgpu::ComputePipeline>,
    groups: HashMap<GroupKey, wgpu::BindGroup>,
    /// The driver's results from earlier runs.
    pub(crate) cache: Option<PipelineCache>,
}

/// Each array with its range, and whether it is written.
type GroupKey = Vec<(u64, u64, u64, bool)>;

#[derive(Debug)]
struct Layout {
    group: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

/// A kernel that is ready to run, except for the size of its grid.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) group: wgpu::BindGroup,
    /// The offset of its parameters, in bytes.
    pub(crate) offset: u32,
}

/// A kernel to prepare.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KernelRequest<'a> {
    /// The operation, for errors.
    pub(crate) op: &'a str,
    pub(crate) shader: &'a Shader,
    /// In the order of the shader's bindings, from 1 on.
    pub(crate) bindings: &'a [Binding<'a>],
    /// The offset of its parameters, in bytes.
    pub(crate) offset: u32,
    /// Whether to keep the bind group, and with it the arrays, for later.
    pub(crate) keep: bool,
}

impl Pipelines {
    /// Prepare a kernel.
    ///
    /// # Errors
    /// When an array belongs to another device or exceeds the binding limit; errors of the driver.
    pub(crate) fn prepare(&mut self, device: &Device, params: &Params, request: KernelRequest<'_>) -> Result<Kernel> {
        let KernelRequest { op, shader, bindings, offset, keep } = request;
        device.check_owner(op, bindings.iter().map(|binding| binding.array))?;
        let limit = device.limits.max_storage_buffer_binding_size;
        // The whole array if it can be bound, so that steps of different lengths share bind groups.
        let whole = |binding: &Binding<'_>| match binding.array.buffer.size() {
            size if binding.offset == 0 && size <= limit => size,
            _ => binding.bytes,
        };
        let bindings: Vec<Binding<'_>> =
            bindings.iter().map(|binding| Binding { bytes: whole(binding), ..*binding }).collect();
        if let Some(binding) = bindings.iter().find(|binding| binding.bytes > limit) {
            let [size, limit] = HumanBytes::compared(binding.bytes, limit);
            let reason = format!("an array of {size} exceeds the device's {limit} a binding");
            return Err(device.error(op, reason));
        }
        let access: Vec<bool> = bindings.iter().map(|binding| binding.writable).collect();
        let pipeline = self.pipeline(device, op, shader, &access)?;
        let group = self.group(device, params, op, &bindings, keep)?;
        Ok(Kernel { pipeline, group, offset })
    }

    /// Forget all bind groups, and with them arrays that nobody else holds.
    pub(crate) fn forget_groups(&mut self) {
        self.groups.clear();
    }

    fn pipeline(
        &mut self,
        device: &Device,
        op: &str,
        shader: &Shader,
        access: &[bool],
    ) -> Result<wgpu::ComputePipeline> {
        if let Some(pipeline) = self.pipelines.get(shader) {
            return Ok(pipeline.clone());
        }
        #[cfg(test)]
        crate::tests::shaders::assert_is_a_variant(shader);
        device.stats.made(2);
        let layout = layout(&mut self.layouts, device, access);
        let make = || {
            let module = device.handle.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(shader.kernel),
                source: wgpu::ShaderSource::Wgsl(shader.compose().into()),
            });
            device.handle.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(shader.kernel),
                layout: Some(&layout.pipeline),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Every kernel writes workgroup memory before it reads it.
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: self.cache.as_ref().map(PipelineCache::pipelines),
            })
        };
        let pipeline = device.guarded(op, 0, make)?;
        self.pipelines.insert(shader.clone(), pipeline.clone());
        Ok(pipeline)
    }

    fn group(
        &mut self,
        device: &Device,
        params: &Params,
        op: &str,
        bindings: &[Binding<'_>],
        keep: bool,
    ) -> Result<wgpu::BindGroup> {
        let key: GroupKey = bindings.iter().map(|b| (b.array.id, b.offset, b.bytes, b.writable)).collect();
        if let Some(group) = self.groups.get(&key) {
            return Ok(group.clone());
        }
        device.stats.made(1);
        let access: Vec<bool> = bindings.iter().map(|binding| binding.writable).collect();
        let layout = layout(&mut self.layouts, device, &access);
        let binding = |buffer, offset, size| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) })
        };
        let mut entries =
            vec![wgpu::BindGroupEntry { binding: 0, resource: binding(params.buffer(), 0, 4 * WORDS as u64) }];
        entries.extend(bindings.iter().zip(1..).map(|(b, index)| wgpu::BindGroupEntry {
            binding: index,
            resource: binding(&b.array.buffer, b.offset, b.bytes),
        }));
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &layout.group, entries: &entries };
        let group = device.guarded(op, 0, || device.handle.create_bind_group(&descriptor))?;
        if keep {
            self.groups.insert(key, group.clone());
        }
        Ok(group)
    }
}

/// The layout of kernels with these written arrays.
fn layout<'a>(layouts: &'a mut HashMap<Vec<bool>, Layout>, device: &Device, access: &[bool]) -> &'a Layout {
    layouts.entry(access.to_vec()).or_insert_with(|| {
        device.stats.made(2);
        let entry = |binding: u32, ty: wgpu::BufferBindingType, has_dynamic_offset: bool| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
            count: None,
        };
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, true)];
        entries.extend(
            access.iter().zip(1..).map(|(writable, index)| {
                entry(index, wgpu::BufferBindingType::Storage { read_only: !writable }, false)
            }),
        );
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
        let group = device.handle.create_bind_group_layout(&descriptor);
        let pipeline = device.handle.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&group)],
            immediate_size: 0,
        });
        Layout { group, pipeline }
    })
}
