//! Compiled kernels on disk, so that the driver compiles each once: a file for each adapter and driver.

use std::path::PathBuf;

/// The cache of an open device. Written back when it goes, if it has grown.
#[derive(Debug)]
pub(crate) struct Cache {
    pipelines: wgpu::PipelineCache,
    path: PathBuf,
    /// Bytes of what was read.
    read: usize,
}

impl Cache {
    /// The cache for `device`, filled with what an earlier run has left. None where the driver has no such thing.
    pub(crate) fn open(device: &wgpu::Device, adapter: &wgpu::Adapter) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let path = folder()?.join(wgpu::util::pipeline_cache_key(&adapter.get_info())?);
        let data = std::fs::read(&path).ok();
        // SAFETY: the file was written by this module from the same adapter and driver, which its name says; the
        // driver checks a header of its own, and `fallback` starts anew where that does not fit.
        let pipelines = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("qwen"),
                data: data.as_deref(),
                fallback: true,
            })
        };
        Some(Cache { pipelines, path, read: data.map_or(0, |data| data.len()) })
    }

    pub(crate) fn pipelines(&self) -> &wgpu::PipelineCache {
        &self.pipelines
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let Some(data) = self.pipelines.get_data().filter(|data| data.len() > self.read) else { return };
        // A cache that cannot be written costs time, nothing else. Renamed in place: another process may be reading.
        let written = self.path.with_extension(format!("{}.tmp", std::process::id()));
        let kept = self.path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if kept.and_then(|()| std::fs::write(&written, data)).is_ok() {
            let _ = std::fs::rename(&written, &self.path);
        }
    }
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
