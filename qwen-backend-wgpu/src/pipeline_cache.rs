//! Compiled kernels on disk, so that the driver compiles each once: a file for each adapter and version of its driver.

use std::path::{Path, PathBuf};

/// The cache of an open device. Written back when it goes, if it is no longer what was read.
#[derive(Debug)]
pub(crate) struct Cache {
    pipelines: wgpu::PipelineCache,
    path: PathBuf,
    /// What was read.
    read: Option<Vec<u8>>,
}

impl Cache {
    /// The cache for `device` in the user's cache folder, filled with what an earlier run has left. None where the driver
    /// has no such thing.
    pub(crate) fn open(device: &wgpu::Device, adapter: &wgpu::Adapter) -> Option<Self> {
        Self::open_in(&folder()?, device, adapter)
    }

    fn open_in(folder: &Path, device: &wgpu::Device, adapter: &wgpu::Adapter) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let path = folder.join(file_name(&adapter.get_info())?);
        let read = std::fs::read(&path).ok();
        // SAFETY: the file's name says that this module wrote it for this adapter and driver. The driver checks a header
        // of its own, as wgpu does before it, and `fallback` starts anew where that does not fit.
        let pipelines = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("qwen"),
                data: read.as_deref(),
                fallback: true,
            })
        };
        Some(Cache { pipelines, path, read })
    }

    pub(crate) fn pipelines(&self) -> &wgpu::PipelineCache {
        &self.pipelines
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let data = self.pipelines.get_data();
        let Some(data) = data.filter(|data| self.read.as_ref() != Some(data)) else { return };
        // A cache that cannot be written costs time, nothing else. Renamed in place: another process may be reading.
        let written = self.path.with_extension(format!("{}.tmp", std::process::id()));
        let kept = self.path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if kept.and_then(|()| std::fs::write(&written, data)).is_ok() {
            let _ = std::fs::rename(&written, &self.path);
        }
    }
}

/// The file of an adapter with its driver, where the API has such caches.
fn file_name(info: &wgpu::AdapterInfo) -> Option<String> {
    let driver = format!("{}\n{}", info.driver, info.driver_info);
    Some(format!("{}_{:016x}", wgpu::util::pipeline_cache_key(info)?, fnv1a(driver.as_bytes())))
}

/// FNV-1a: the same in every build, unlike the standard library's hashes.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// `qwen-rs` in the user's cache folder.
fn folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = match cfg!(windows) {
        true => variable("LOCALAPPDATA"),
        false => variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache"))),
    };
    Some(cache?.join("qwen-rs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter;
    use crate::options::AdapterChoice;

    /// A device of the adapter that tests run on, with a pipeline compiled in a cache in `folder`.
    fn compile(folder: &Path) -> Option<PathBuf> {
        let name = std::env::var("QWEN_WGPU_ADAPTER").unwrap_or_else(|_| "llvmpipe".into());
        let adapter = match adapter::choose(&AdapterChoice::Name(name)) {
            Ok((adapter, _)) => adapter,
            Err(error) => {
                println!("skipped: {error}");
                return None;
            }
        };
        let required_features = adapter.features() & wgpu::Features::PIPELINE_CACHE;
        let descriptor = wgpu::DeviceDescriptor { required_features, ..Default::default() };
        let (device, _queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        let Some(cache) = Cache::open_in(folder, &device, &adapter) else {
            println!("skipped: this driver gives compiled kernels to nobody");
            return None;
        };
        let source = wgpu::ShaderSource::Wgsl("@compute @workgroup_size(1) fn main() {}".into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let _compiled = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: Some(cache.pipelines()),
        });
        Some(cache.path.clone())
    }

    #[test]
    fn what_a_driver_rejects_is_replaced_and_what_it_knows_stays() {
        let folder = std::env::temp_dir().join(format!("qwen-pipeline-cache-{}", std::process::id()));
        let Some(path) = compile(&folder) else { return };
        let written = std::fs::read(&path).unwrap();
        assert!(!written.is_empty());
        // Longer than what the driver has to say, as the file of an older driver may be.
        let foreign = [&[0xa5; 256][..], &written].concat();
        std::fs::write(&path, &foreign).unwrap();
        compile(&folder).unwrap();
        let replaced = std::fs::read(&path).unwrap();
        assert!(replaced != foreign && !replaced.is_empty() && replaced.len() < foreign.len());
        // What was read and is still all is not written again.
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        compile(&folder).unwrap();
        let again = std::fs::read(&path).unwrap();
        assert!(again != replaced || std::fs::metadata(&path).unwrap().modified().unwrap() == time);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn each_driver_has_a_file_of_its_own() {
        let info = |backend, driver_info: &str| {
            let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, backend);
            (info.vendor, info.device) = (4098, 29772);
            (info.driver, info.driver_info) = ("radv".into(), driver_info.into());
            info
        };
        let name = |driver_info| file_name(&info(wgpu::Backend::Vulkan, driver_info)).unwrap();
        assert_ne!(name("Mesa 22.3.6"), name("Mesa 26.1.6"));
        assert!(name("Mesa 22.3.6").starts_with("wgpu_pipeline_cache_vulkan_4098_29772_"));
        assert_eq!(file_name(&info(wgpu::Backend::Metal, "")), None);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
