//! Compiled kernels on disk, so that the driver compiles each once: one file per adapter and driver version.
//!
//! Drivers assume that they wrote the bytes of a pipeline cache themselves; with other bytes their behaviour is
//! undefined, up to executing them. So a file is passed to the driver only if
//!
//! - the file and its folder belong to this user and nobody else may write them (`folder.rs`);
//! - its checksum shows that it is intact, and that it came from this adapter and driver version (`entry.rs`).
//!
//! Any other file is ignored, with a reason that [`PipelineCache::refusal`] keeps, and replaced when the device is
//! closed. The folder protects against other users. The checksum protects against damage; it is not secret, so neither
//! protects against a program that runs as the same user, which could replace this program as well.

mod entry;
mod folder;

use std::path::{Path, PathBuf};

use entry::Identity;
use folder::PrivateFolder;

/// The largest file that is read or written. Drivers return a few megabytes for the kernels of this crate.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The pipeline cache of an open device. Dropping it writes it back, if it has changed since it was read.
#[derive(Debug)]
pub(crate) struct PipelineCache {
    pipelines: wgpu::PipelineCache,
    /// `None` if the folder cannot be used.
    file: Option<CacheFile>,
    /// What the driver was given.
    read: Option<Vec<u8>>,
    refusal: Option<String>,
}

/// The location of a cache on disk.
#[derive(Debug)]
struct CacheFile {
    folder: PrivateFolder,
    name: String,
    identity: Identity,
}

impl CacheFile {
    fn read(&self) -> Result<Option<Vec<u8>>, String> {
        let Some(file) = self.folder.read(&self.name, MAX_FILE_BYTES)? else { return Ok(None) };
        let data = entry::decode(&self.identity, &file).map_err(|reason| self.folder.refusal(&self.name, &reason))?;
        Ok(Some(data.to_vec()))
    }
}

impl PipelineCache {
    /// The cache for `device` in the user's cache folder, filled from an earlier run. `None` if the driver has no
    /// pipeline caches, or the user no such folder.
    pub(crate) fn open(device: &wgpu::Device, adapter: &wgpu::Adapter) -> Option<Self> {
        Self::open_in(&user_folder()?, device, adapter)
    }

    fn open_in(folder: &Path, device: &wgpu::Device, adapter: &wgpu::Adapter) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let info = adapter.get_info();
        let identity = entry::identity(&info);
        let name = file_name(&info, &identity)?;
        let (file, read, refusal) = match PrivateFolder::open(folder) {
            Err(refusal) => (None, None, Some(refusal)),
            Ok(folder) => {
                let file = CacheFile { folder, name, identity };
                match file.read() {
                    Ok(read) => (Some(file), read, None),
                    Err(refusal) => (Some(file), None, Some(refusal)),
                }
            }
        };
        // SAFETY: the checksum of the file shows that the bytes came from this version of this adapter's driver, and
        // only this user may write the file. The driver also checks its own header, as wgpu does before it, and
        // `fallback` starts with an empty cache if that header does not match.
        let pipelines = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("qwen"),
                data: read.as_deref(),
                fallback: true,
            })
        };
        Some(PipelineCache { pipelines, file, read, refusal })
    }

    /// The cache for the driver.
    pub(crate) fn pipelines(&self) -> &wgpu::PipelineCache {
        &self.pipelines
    }

    /// Why compiled kernels on disk were not used.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }
}

impl Drop for PipelineCache {
    fn drop(&mut self) {
        let Some(file) = &self.file else { return };
        let Some(data) = self.pipelines.get_data().filter(|data| self.read.as_ref() != Some(data)) else { return };
        let bytes = entry::encode(&file.identity, &data);
        if bytes.len() as u64 <= MAX_FILE_BYTES {
            // A cache that cannot be written only costs time at the next start.
            let _ = file.folder.replace(&file.name, &bytes);
        }
    }
}

/// The file name for an adapter and its driver, if the API has pipeline caches.
fn file_name(info: &wgpu::AdapterInfo, identity: &Identity) -> Option<String> {
    let digest: String = identity[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{}_{digest}", wgpu::util::pipeline_cache_key(info)?))
}

/// `qwen-rs` in the user's cache folder.
fn user_folder() -> Option<PathBuf> {
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
    use qwen_core::backend::AdapterChoice;

    /// What happened to the file that a device found.
    struct Opened {
        path: PathBuf,
        /// What the driver was given.
        read: Option<Vec<u8>>,
        refusal: Option<String>,
    }

    /// Open a device of the adapter that tests run on, and compile a pipeline in a cache in `folder`.
    fn compile(folder: &Path) -> Option<Opened> {
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
        let Some(cache) = PipelineCache::open_in(folder, &device, &adapter) else {
            println!("skipped: this driver has no pipeline caches");
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
        let path = folder.join(cache.file.as_ref().map_or("", |file| &file.name));
        Some(Opened { path, read: cache.read.clone(), refusal: cache.refusal().map(str::to_owned) })
    }

    fn scratch(test: &str) -> PathBuf {
        std::env::temp_dir().join(format!("qwen-pipeline-cache-{}-{test}", std::process::id()))
    }

    #[test]
    fn what_a_driver_gave_out_is_read_again_and_written_once() {
        let folder = scratch("again");
        let Some(first) = compile(&folder) else { return };
        assert!(first.read.is_none() && first.refusal.is_none());
        let written = std::fs::read(&first.path).unwrap();
        let time = std::fs::metadata(&first.path).unwrap().modified().unwrap();
        let second = compile(&folder).unwrap();
        assert_eq!(second.read.unwrap(), written[entry::HEADER..]);
        assert_eq!(second.refusal, None);
        let again = std::fs::read(&first.path).unwrap();
        assert!(again != written || std::fs::metadata(&first.path).unwrap().modified().unwrap() == time);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_that_is_not_sound_never_reaches_the_driver_and_is_replaced() {
        let folder = scratch("damaged");
        let Some(Opened { path, .. }) = compile(&folder) else { return };
        let sound = std::fs::read(&path).unwrap();
        let mut flipped = sound.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let mut foreign = sound.clone();
        foreign[20] ^= 1;
        let data = &sound[entry::HEADER..];
        let files = [
            ("empty", Vec::new(), "header"),
            ("cut short", sound[..sound.len() - 1].to_vec(), "another number"),
            ("longer", [&sound[..], &[0]].concat(), "another number"),
            ("damaged", flipped, "checksum"),
            ("of another driver", foreign, "another adapter or driver"),
            ("without a header", data.to_vec(), ""),
            ("noise", vec![0xa5; 4096], "version"),
        ];
        for (what, file, reason) in files {
            std::fs::write(&path, &file).unwrap();
            let opened = compile(&folder).unwrap();
            assert!(opened.read.is_none(), "a file that is {what} reached the driver");
            let refusal = opened.refusal.unwrap();
            assert!(refusal.contains(reason) && refusal.contains(path.to_str().unwrap()), "{what}: {refusal}");
            let replaced = compile(&folder).unwrap();
            assert!(replaced.read.is_some() && replaced.refusal.is_none(), "{what}: {:?}", replaced.refusal);
        }
        // A sparse file larger than any cache.
        std::fs::File::create(&path).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        let opened = compile(&folder).unwrap();
        assert!(opened.read.is_none() && opened.refusal.unwrap().contains("at most"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_others_may_write_is_neither_read_nor_written() {
        use std::os::unix::fs::PermissionsExt;
        let folder = scratch("folder");
        let Some(Opened { path, .. }) = compile(&folder) else { return };
        let before = std::fs::read(&path).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        std::fs::write(&path, b"foreign").unwrap();
        let opened = compile(&folder).unwrap();
        assert!(opened.read.is_none() && opened.refusal.unwrap().contains("may write"));
        assert_eq!(std::fs::read(&path).unwrap(), b"foreign");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(&path, before).unwrap();
        assert!(compile(&folder).unwrap().read.is_some());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn each_driver_has_a_file_of_its_own() {
        let name = |backend, driver_info: &str| {
            let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, backend);
            (info.vendor, info.device) = (4098, 29772);
            (info.driver, info.driver_info) = ("radv".into(), driver_info.into());
            file_name(&info, &entry::identity(&info))
        };
        let vulkan = |driver_info| name(wgpu::Backend::Vulkan, driver_info).unwrap();
        assert_ne!(vulkan("Mesa 22.3.6"), vulkan("Mesa 26.1.6"));
        assert!(vulkan("Mesa 22.3.6").starts_with("wgpu_pipeline_cache_vulkan_4098_29772_"));
        assert_eq!(name(wgpu::Backend::Metal, ""), None);
    }
}
