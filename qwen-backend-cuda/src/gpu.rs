//! An open card: arrays, copies through pinned memory, launches with their checks, and what becomes of faults.

use std::sync::Arc;

use qwen_core::{Error, Result};

use crate::card_info::CardInfo;
use crate::driver::{Array, Driver, Fault, Graph, Launch, Memory, Outcome, Pinned, Touched};
use crate::kernel::Kernel;
use crate::nccl::Exchange;
use crate::params::{Address, Params};

/// Bytes of each of the two pieces of pinned memory that copies go through: one is filled while the other is copied.
const HALF: usize = 8 << 20;

/// The most blocks of a grid along x, y and z, on every card.
const MOST_BLOCKS: [usize; 3] = [(1 << 31) - 1, 65_535, 65_535];

/// Something for the card to do.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// A kernel of an operation.
    Launch(&'static str, Launch),
    /// Something that ranks do together.
    Exchange(Exchange),
}

impl Work {
    /// What ranks do together, if it is that.
    pub(crate) fn exchange(&self) -> Option<&Exchange> {
        match self {
            Work::Launch(..) => None,
            Work::Exchange(exchange) => Some(exchange),
        }
    }
}

/// An open card.
#[derive(Debug)]
pub(crate) struct Gpu {
    driver: Arc<dyn Driver>,
    /// Waits after each kernel, so that a fault names it.
    wait_after_each: bool,
    /// Why the context is lost.
    fault: Option<String>,
    staging: Option<Staging>,
    /// Operations since the last wait: how many, the first and the last.
    pending: Option<(usize, &'static str, &'static str)>,
}

#[derive(Debug)]
struct Staging {
    halves: [Pinned; 2],
    /// The half that is being filled, and how many bytes of it are.
    current: usize,
    used: usize,
}

impl Gpu {
    pub(crate) fn new(driver: Arc<dyn Driver>, wait_after_each: bool) -> Self {
        Gpu { driver, wait_after_each, fault: None, staging: None, pending: None }
    }

    pub(crate) fn info(&self) -> &CardInfo {
        self.driver.info()
    }

    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    pub(crate) fn error(&self, op: &str, reason: impl Into<String>) -> Error {
        Error::Device { device: self.info().to_string(), op: op.into(), reason: reason.into() }
    }

    /// `bytes` is 0 where the driver knows alone what it wanted to take.
    fn out_of_memory(&self, what: &str, bytes: u64) -> Error {
        Error::OutOfMemory { device: self.info().to_string(), what: what.into(), bytes }
    }

    /// Refuse to go on after the context was lost.
    pub(crate) fn check(&self, op: &str) -> Result<()> {
        match &self.fault {
            Some(reason) => Err(self.error(op, reason.clone())),
            None => Ok(()),
        }
    }

    /// What the driver said, as an error of `op`.
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

    /// An array of `bytes` bytes, all zero. `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the card's memory does not have them.
    pub(crate) fn array(&mut self, what: &str, bytes: usize) -> Result<Array> {
        let array = self.unset_array(what, bytes)?;
        // SAFETY: the array is alive, and this long.
        let zeroed = unsafe { self.driver.zero(array.address, array.bytes) };
        self.outcome(what, zeroed)?;
        Ok(array)
    }

    /// An array with any contents.
    pub(crate) fn unset_array(&mut self, what: &str, bytes: usize) -> Result<Array> {
        self.check(what)?;
        let bytes = array_bytes(bytes);
        match self.driver.alloc(what, bytes) {
            Ok(address) => Ok(Arc::new(Memory { driver: self.driver.clone(), address, bytes })),
            Err(Fault::OutOfMemory) => Err(self.out_of_memory(what, bytes as u64)),
            Err(fault) => self.outcome(what, Err(fault)),
        }
    }

    /// Write `bytes` bytes of `array` from `at` on: what `fill` makes of the memory it is given. At most [`Gpu::piece`]
    /// bytes at a time.
    pub(crate) fn write(
        &mut self,
        op: &str,
        array: &Array,
        at: usize,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        self.check(op)?;
        self.own(op, array)?;
        if at + bytes > array.bytes || bytes > HALF {
            return Err(self.error(op, format!("{bytes} bytes at {at} of an array of {}", array.bytes)));
        }
        let driver = self.driver.clone();
        let staged = self.staging(op).and_then(|staging| {
            let from = staging.place(&*driver, bytes)?;
            // SAFETY: `place` waited for the copies from this half, and gives out each byte once.
            let place = unsafe { staging.halves[staging.current].bytes_mut(from..from + bytes) };
            fill(place);
            // SAFETY: the array is alive and this long, as checked above; the half is not written before a wait.
            unsafe { driver.upload(array.address + at as u64, place.as_ptr(), bytes) }
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

    /// Read the beginning of `array` to `values`, once all that is queued has run.
    pub(crate) fn read_f32(&mut self, op: &str, array: &Array, values: &mut [f32]) -> Result<()> {
        self.read_words(op, array, values, f32::from_le_bytes)
    }

    /// Read the beginning of `array` to `values`, once all that is queued has run.
    pub(crate) fn read_u32(&mut self, op: &str, array: &Array, values: &mut [u32]) -> Result<()> {
        self.read_words(op, array, values, u32::from_le_bytes)
    }

    fn read_words<T>(&mut self, op: &str, array: &Array, values: &mut [T], value: fn([u8; 4]) -> T) -> Result<()> {
        let mut values = values.iter_mut();
        self.read(op, array, 4 * values.len(), |bytes| {
            bytes.as_chunks().0.iter().zip(&mut values).for_each(|(bytes, out)| *out = value(*bytes));
        })
    }

    /// The most bytes that [`Gpu::write`] takes.
    pub(crate) fn piece() -> usize {
        HALF
    }

    /// Read the first `bytes` bytes of `array`, piece by piece, once all that is queued has run.
    fn read(&mut self, op: &str, array: &Array, bytes: usize, mut take: impl FnMut(&[u8])) -> Result<()> {
        self.check(op)?;
        self.own(op, array)?;
        if bytes > array.bytes {
            return Err(self.error(op, format!("{bytes} bytes of an array of {}", array.bytes)));
        }
        for at in (0..bytes).step_by(HALF) {
            let piece = HALF.min(bytes - at);
            let driver = self.driver.clone();
            let copied = self.staging(op).and_then(|staging| {
                let to = staging.halves[0].as_mut_ptr();
                // SAFETY: the array is alive and this long; copies from the half were queued before and so run before,
                // and it is used again after the wait alone.
                unsafe { driver.download(to, array.address + at as u64, piece) }
            });
            self.outcome(op, copied)?;
            self.wait(op)?;
            if let Some(staging) = &mut self.staging {
                // SAFETY: the wait has passed all copies.
                take(unsafe { staging.halves[0].bytes_mut(0..piece) });
            }
        }
        if bytes == 0 { self.wait(op) } else { Ok(()) }
    }

    /// Wait for all that was queued.
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

    /// Queue `work`.
    pub(crate) fn issue(&mut self, work: &Work) -> Result<()> {
        match work {
            Work::Launch(op, launch) => {
                self.check(op)?;
                let prepared = self.driver.prepare(launch.kernel);
                self.outcome(op, prepared)?;
                self.launch(op, launch)
            }
            Work::Exchange(exchange) => {
                let op = exchange.op();
                self.check(op)?;
                self.note(op);
                let queued = exchange.issue(&*self.driver);
                self.outcome(op, queued)
            }
        }
    }

    fn launch(&mut self, op: &'static str, launch: &Launch) -> Result<()> {
        self.note(op);
        // SAFETY: `Args` took the addresses from arrays that are as long as the kernel takes them, and that the launch
        // keeps alive; they are given back in the order of the stream.
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

    /// `work` as a graph. Nothing of it runs. None where the driver refuses to record it.
    pub(crate) fn capture(&mut self, work: &[Work]) -> Result<Option<Graph>> {
        self.check("step")?;
        for work in work {
            if let Work::Launch(op, launch) = work {
                let prepared = self.driver.prepare(launch.kernel);
                self.outcome(op, prepared)?;
            }
        }
        match self.driver.begin_capture() {
            Err(Fault::Refused(_)) => return Ok(None),
            begun => self.outcome("step", begun)?,
        }
        let captured = work.iter().try_for_each(|work| match work {
            // SAFETY: as in `launch`; whoever keeps the graph keeps the work, and with it the arrays.
            Work::Launch(_, launch) => unsafe { self.driver.launch(launch) },
            Work::Exchange(exchange) => exchange.issue(&*self.driver),
        });
        // A capture that failed has to be ended, too.
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
        // SAFETY: its owner keeps the launches that it was captured from, and so their arrays.
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

    fn own(&self, op: &str, array: &Array) -> Result<()> {
        match Arc::ptr_eq(&self.driver, &array.driver) {
            true => Ok(()),
            false => Err(self.error(op, "an array belongs to another backend")),
        }
    }
}

impl Staging {
    /// Where so many bytes have place in the current half, after a change to the other one where they have none.
    fn place(&mut self, driver: &dyn Driver, bytes: usize) -> Outcome<usize> {
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

/// Bytes of an array that has to hold so many: whole words of 16 bytes, and never none.
pub(crate) fn array_bytes(bytes: usize) -> usize {
    bytes.max(16).next_multiple_of(16)
}

/// What drivers take memory by; arrays of up to half as much share one.
const PAGE: u64 = 2 << 20;

/// Bytes of a card's memory that an array takes.
pub(crate) fn taken_bytes(bytes: usize) -> u64 {
    match array_bytes(bytes) as u64 {
        small if small <= PAGE / 2 => small,
        large => large.next_multiple_of(PAGE),
    }
}

/// The arrays of a launch, checked as they are taken.
#[derive(Debug)]
pub(crate) struct Args<'a> {
    gpu: &'a Gpu,
    op: &'static str,
    touched: Vec<Touched>,
}

impl<'a> Args<'a> {
    pub(crate) fn new(gpu: &'a Gpu, op: &'static str) -> Self {
        Args { gpu, op, touched: Vec::new() }
    }

    /// The address of `array`, of which the kernel reads or writes the first `bytes` bytes.
    pub(crate) fn take(&mut self, name: &'static str, array: &Array, bytes: usize) -> Result<Address> {
        self.gpu.own(self.op, array)?;
        if bytes > array.bytes {
            let reason = format!("`{name}` holds {} bytes, {bytes} are needed", array.bytes);
            return Err(self.gpu.error(self.op, reason));
        }
        self.touched.push(Touched { name, array: array.clone(), bytes });
        Ok(Address(array.address))
    }

    /// The launch of `kernel` with `params`; none when its grid has no blocks.
    pub(crate) fn launch(self, kernel: Kernel, grid: [usize; 3], params: &impl Params) -> Result<Option<Work>> {
        if grid.contains(&0) {
            return Ok(None);
        }
        if let Some(axis) = (0..3).find(|axis| grid[*axis] > MOST_BLOCKS[*axis]) {
            let (axis, blocks, most) = (["x", "y", "z"][axis], grid[axis], MOST_BLOCKS[axis]);
            return Err(self.gpu.error(self.op, format!("{blocks} blocks along {axis}, a card takes {most}")));
        }
        let (grid, params) = (grid.map(|size| size as u32), params.pack());
        debug_assert_eq!(params.len(), kernel.fields().iter().map(|field| field.bytes).sum::<usize>(), "{kernel}");
        let launch = Launch { kernel, grid, params, touched: self.touched };
        Ok(Some(Work::Launch(self.op, launch)))
    }
}
