//! An open GPU: arrays, copies through pinned memory, the queue of commands, and the faults that a driver reports.

use std::sync::Arc;

use qwen_core::{Error, Result};

use crate::device::DeviceProperties;
use crate::driver::{Array, Command, Driver, Fault, Graph, Launch, Memory, Outcome, Pinned};
use crate::sizes::{array_bytes, product};

/// Bytes of each of the two halves of pinned memory for copies: one is filled while the other is copied.
const HALF: usize = 8 << 20;

/// An array, where a piece of it begins, and its bytes.
pub(crate) type Piece = (Array, usize, usize);

/// An open GPU.
#[derive(Debug)]
pub(crate) struct Gpu {
    driver: Arc<dyn Driver>,
    /// Wait after each kernel, so that a fault names it.
    wait_after_each: bool,
    /// Why the context is lost, if it is.
    fault: Option<String>,
    staging: Option<Staging>,
    /// Operations since the last wait: their number, the first and the last.
    pending: Option<(usize, &'static str, &'static str)>,
}

#[derive(Debug)]
struct Staging {
    halves: [Pinned; 2],
    /// The half that is being filled, and the bytes of it that are in use.
    current: usize,
    used: usize,
}

impl Gpu {
    pub(crate) fn new(driver: Arc<dyn Driver>, wait_after_each: bool) -> Self {
        Gpu { driver, wait_after_each, fault: None, staging: None, pending: None }
    }

    pub(crate) fn info(&self) -> &DeviceProperties {
        self.driver.info()
    }

    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    pub(crate) fn error(&self, op: &str, reason: impl Into<String>) -> Error {
        Error::Device { device: self.info().to_string(), op: op.into(), reason: reason.into() }
    }

    /// `bytes` is 0 if only the driver knows the size.
    fn out_of_memory(&self, what: &str, bytes: u64) -> Error {
        Error::OutOfMemory { device: self.info().to_string(), what: what.into(), bytes }
    }

    /// Refuse every call after the context was lost.
    pub(crate) fn check(&self, op: &str) -> Result<()> {
        match &self.fault {
            Some(reason) => Err(self.error(op, reason.clone())),
            None => Ok(()),
        }
    }

    /// Turn a fault of the driver into an error of `op`.
    fn outcome<T>(&mut self, op: &str, outcome: Outcome<T>) -> Result<T> {
        outcome.map_err(|fault| {
            if let Fault::OutOfMemory = fault {
                return self.out_of_memory(op, 0);
            }
            let mut reason = fault.to_string();
            if let Some((count, first, last)) = self.pending {
                reason += &match count {
                    1 => format!(" (queued since the last wait: {first})"),
                    _ => format!(" (queued since the last wait: {count} kernels, from {first} to {last})"),
                };
            }
            if let Fault::Lost(_) = fault {
                self.fault = Some(reason.clone());
            }
            self.error(op, reason)
        })
    }

    /// An array of `bytes` bytes, all zero. `bytes` comes from [`product`]; `what` names the array in errors.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the GPU does not have enough memory.
    pub(crate) fn array(&mut self, what: &str, bytes: usize) -> Result<Array> {
        let array = self.unset_array(what, bytes)?;
        // SAFETY: the array is alive, and this long.
        let zeroed = unsafe { self.driver.zero(array.address, array.bytes) };
        self.outcome(what, zeroed)?;
        Ok(array)
    }

    /// An array of `len` values of 32 bits, all zero.
    pub(crate) fn words(&mut self, what: &str, len: usize) -> Result<Array> {
        let bytes = product(what, &[len, 4])?;
        self.array(what, bytes)
    }

    /// An array with undefined contents.
    pub(crate) fn unset_array(&mut self, what: &str, bytes: usize) -> Result<Array> {
        self.check(what)?;
        let bytes = array_bytes(bytes);
        match self.driver.alloc(what, bytes) {
            Ok(address) => Ok(Arc::new(Memory { driver: self.driver.clone(), address, bytes })),
            Err(Fault::OutOfMemory) => Err(self.out_of_memory(what, bytes as u64)),
            Err(fault) => self.outcome(what, Err(fault)),
        }
    }

    /// Write `bytes` bytes of `array` from `at` on. `fill` writes them to the pinned memory that they are copied from; at
    /// most [`Gpu::piece`] bytes at a time.
    pub(crate) fn write(
        &mut self,
        op: &str,
        array: &Array,
        at: usize,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        self.check(op)?;
        self.check_owner(op, array)?;
        if bytes > HALF || at.checked_add(bytes).is_none_or(|end| end > array.bytes) {
            return Err(self.error(op, format!("{bytes} bytes at {at} of an array of {}", array.bytes)));
        }
        let driver = self.driver.clone();
        let staged = self.staging(op).and_then(|staging| {
            let from = staging.reserve(&*driver, bytes)?;
            // SAFETY: `reserve` waited for the copies from this half, and returns each byte once.
            let pinned = unsafe { staging.halves[staging.current].bytes_mut(from..from + bytes) };
            fill(pinned);
            // SAFETY: the array is alive and this long, as checked above; the half is written again only after a wait.
            unsafe { driver.upload(array.address + at as u64, pinned.as_ptr(), bytes) }
        });
        self.outcome(op, staged)
    }

    /// Write `values` to the beginning of `array`.
    pub(crate) fn write_f32(&mut self, op: &str, array: &Array, values: &[f32]) -> Result<()> {
        self.write_words(op, array, values, f32::to_le_bytes)
    }

    /// Write `values` to the beginning of `array`.
    pub(crate) fn write_u32(&mut self, op: &str, array: &Array, values: &[u32]) -> Result<()> {
        self.write_words(op, array, values, u32::to_le_bytes)
    }

    fn write_words<T: Copy>(&mut self, op: &str, array: &Array, values: &[T], bytes: fn(T) -> [u8; 4]) -> Result<()> {
        for (piece, values) in values.chunks(HALF / 4).enumerate() {
            self.write(op, array, piece * HALF, 4 * values.len(), |out| {
                out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(out, value)| *out = bytes(*value));
            })?;
        }
        Ok(())
    }

    /// Read the beginning of `array` to `values`, after all queued commands have run.
    pub(crate) fn read_f32(&mut self, op: &str, array: &Array, values: &mut [f32]) -> Result<()> {
        self.read_words(op, array, values, f32::from_le_bytes)
    }

    /// Read the beginning of `array` to `values`, after all queued commands have run.
    pub(crate) fn read_u32(&mut self, op: &str, array: &Array, values: &mut [u32]) -> Result<()> {
        self.read_words(op, array, values, u32::from_le_bytes)
    }

    fn read_words<T>(&mut self, op: &str, array: &Array, values: &mut [T], value: fn([u8; 4]) -> T) -> Result<()> {
        let bytes = size_of_val(values);
        let mut values = values.iter_mut();
        self.read_pieces(op, &[(array.clone(), 0, bytes)], |bytes| {
            bytes.as_chunks().0.iter().zip(&mut values).for_each(|(bytes, out)| *out = value(*bytes));
        })
    }

    /// The most bytes that [`Gpu::write`] takes.
    pub(crate) fn piece() -> usize {
        HALF
    }

    /// Write `bytes` to `array` from `at` on.
    pub(crate) fn write_bytes(&mut self, op: &str, array: &Array, at: usize, bytes: &[u8]) -> Result<()> {
        for (piece, bytes) in bytes.chunks(HALF).enumerate() {
            self.write(op, array, at + piece * HALF, bytes.len(), |out| out.copy_from_slice(bytes))?;
        }
        Ok(())
    }

    /// Read pieces of arrays, in order, after all queued commands have run. `take` gets their bytes, in one or more
    /// parts.
    pub(crate) fn read_pieces(&mut self, op: &str, pieces: &[Piece], mut take: impl FnMut(&[u8])) -> Result<()> {
        self.check(op)?;
        let mut used = 0;
        for (array, at, bytes) in pieces {
            self.check_owner(op, array)?;
            if at.checked_add(*bytes).is_none_or(|end| end > array.bytes) {
                return Err(self.error(op, format!("{bytes} bytes at {at} of an array of {}", array.bytes)));
            }
            for begin in (0..*bytes).step_by(HALF) {
                let piece = HALF.min(bytes - begin);
                if used + piece > HALF {
                    self.take_read(op, &mut used, &mut take)?;
                }
                let (driver, from, to) = (self.driver.clone(), array.address + (at + begin) as u64, used);
                let copied = self.staging(op).and_then(|staging| {
                    // SAFETY: the piece fits into the half; the array is alive and this long, as checked above; uploads
                    // from the half were queued and run before, and it is used again only after the wait.
                    unsafe { driver.download(staging.halves[0].as_mut_ptr().add(to), from, piece) }
                });
                self.outcome(op, copied)?;
                used += piece;
            }
        }
        self.take_read(op, &mut used, &mut take)
    }

    /// Wait for what is being read, and pass it on.
    fn take_read(&mut self, op: &str, used: &mut usize, take: &mut impl FnMut(&[u8])) -> Result<()> {
        self.wait(op)?;
        if let Some(staging) = self.staging.as_mut().filter(|_| *used > 0) {
            // SAFETY: all copies have run.
            take(unsafe { staging.halves[0].bytes_mut(0..*used) });
        }
        *used = 0;
        Ok(())
    }

    /// Wait for all queued commands.
    pub(crate) fn wait(&mut self, op: &str) -> Result<()> {
        self.check(op)?;
        let waited = self.driver.wait();
        self.outcome(op, waited)?;
        self.pending = None;
        if let Some(staging) = &mut self.staging {
            (staging.current, staging.used) = (0, 0);
        }
        Ok(())
    }

    /// Queue `command`.
    pub(crate) fn issue(&mut self, command: &Command) -> Result<()> {
        match command {
            Command::Launch(op, launch) => {
                self.check(op)?;
                let prepared = self.driver.prepare(launch.kernel);
                self.outcome(op, prepared)?;
                self.launch(op, launch)
            }
            Command::Call(call) => {
                let op = call.op();
                self.check(op)?;
                self.note(op);
                let queued = call.enqueue(&*self.driver);
                self.outcome(op, queued)
            }
        }
    }

    fn launch(&mut self, op: &'static str, launch: &Launch) -> Result<()> {
        self.note(op);
        // SAFETY: `Args` checked that the arrays are as long as the kernel expects, and the launch keeps them alive;
        // memory is freed in stream order.
        let launched = unsafe { self.driver.launch(launch) };
        self.outcome(op, launched)?;
        if self.wait_after_each {
            self.wait(&format!("{op} ({})", launch.kernel))?;
        }
        Ok(())
    }

    fn note(&mut self, op: &'static str) {
        self.pending = match self.pending {
            Some((count, first, _)) => Some((count + 1, first, op)),
            None => Some((1, op, op)),
        };
    }

    /// Record `commands` as a graph. None of them runs. `None` if the driver refuses to record them.
    pub(crate) fn capture(&mut self, commands: &[Command]) -> Result<Option<Graph>> {
        self.check("step")?;
        for command in commands {
            if let Command::Launch(op, launch) = command {
                let prepared = self.driver.prepare(launch.kernel);
                self.outcome(op, prepared)?;
            }
        }
        match self.driver.begin_capture() {
            Err(Fault::Refused(_)) => return Ok(None),
            begun => self.outcome("step", begun)?,
        }
        let captured = commands.iter().try_for_each(|command| match command {
            // SAFETY: as in `launch`; the owner of the graph keeps the commands, and with them the arrays.
            Command::Launch(_, launch) => unsafe { self.driver.launch(launch) },
            Command::Call(call) => call.enqueue(&*self.driver),
        });
        // A capture has to be ended even if it failed.
        let graph = self.driver.end_capture().map(|id| Graph { driver: self.driver.clone(), id });
        match captured.and(graph) {
            Err(Fault::Refused(_)) => Ok(None),
            captured => self.outcome("step", captured).map(Some),
        }
    }

    /// Queue a graph.
    pub(crate) fn replay(&mut self, graph: &Graph) -> Result<()> {
        self.check("step")?;
        self.note("step");
        // SAFETY: the owner of the graph keeps the launches that were captured, and so their arrays.
        let launched = unsafe { self.driver.launch_graph(graph.id) };
        self.outcome("step", launched)
    }

    fn staging(&mut self, op: &str) -> Outcome<&mut Staging> {
        if self.staging.is_none() {
            let pin = || Pinned::new(&self.driver, HALF);
            let halves = [pin(), pin()].into_iter().collect::<Outcome<Vec<_>>>()?;
            let Ok(halves) = <[Pinned; 2]>::try_from(halves) else {
                return Err(Fault::Refused(format!("{op}: no pinned memory")));
            };
            self.staging = Some(Staging { halves, current: 0, used: 0 });
        }
        self.staging.as_mut().ok_or_else(|| Fault::Refused(format!("{op}: no pinned memory")))
    }

    /// Refuse an array of another backend.
    pub(crate) fn check_owner(&self, op: &str, array: &Array) -> Result<()> {
        match Arc::ptr_eq(&self.driver, &array.driver) {
            true => Ok(()),
            false => Err(self.error(op, "an array belongs to another backend")),
        }
    }
}

impl Staging {
    /// Reserve `bytes` in the current half, switching halves if it is full. Returns where they begin.
    fn reserve(&mut self, driver: &dyn Driver, bytes: usize) -> Outcome<usize> {
        if self.used + bytes > HALF {
            driver.mark(self.current)?;
            self.current = 1 - self.current;
            driver.wait_mark(self.current)?;
            self.used = 0;
        }
        let from = self.used;
        self.used += bytes.next_multiple_of(16);
        Ok(from)
    }
}
