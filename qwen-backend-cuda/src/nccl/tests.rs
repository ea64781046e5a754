//! Groups with a stand-in for NCCL that sums on the host, and ranks as threads on emulated GPUs: joining, summing, and
//! leaving when a rank is lost.

use std::collections::HashMap;
use std::ffi::{c_char, c_int};
use std::sync::Condvar;
use std::sync::atomic::AtomicU8;
use std::thread;

use qwen_conformance::model::{GEOMETRIES, Geometry, RandomModel};
use qwen_core::Precision;
use qwen_core::backend::Limits;
use qwen_core::backend::{AllReduce, Backend, Interrupt};
use qwen_core::model::Model;
use qwen_core::model::batch::BlockId;
use qwen_core::model::batch::{Batch, SequenceStep, StepOutput, WantLogits};
use qwen_core::model::rope::RopeStages;
use qwen_core::model::runner::{ModelRunner, Runner};
use qwen_core::model::spec::ModelSpec;
use qwen_core::ranks::{DistributedRunner, Ranks, Transport, worker_loop};

use super::*;
use crate::backend::CudaBackend;
use crate::driver::emulated::{Emulated, EmulatedGpu};
use crate::driver::library::Kernels;
use crate::options::CudaOptions;

/// A group of the stand-in.
#[derive(Default)]
struct Group {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    joined: usize,
    ranks: usize,
    /// The current sum, and how many ranks have contributed to it.
    sum: Vec<f32>,
    brought: usize,
    /// Sums that are complete, and the last of them.
    made: usize,
    last: Vec<f32>,
    /// Values that were sent and not received, by sender and receiver.
    sent: HashMap<(c_int, c_int), Vec<Vec<f32>>>,
    aborted: Vec<c_int>,
}

struct Member {
    group: Arc<Group>,
    rank: c_int,
}

static GROUPS: Mutex<Option<HashMap<[u8; ID_BYTES], Arc<Group>>>> = Mutex::new(None);

unsafe extern "C" fn get_unique_id(id: *mut UniqueId) -> c_int {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    // SAFETY: the caller gives room for an id.
    unsafe { *id = UniqueId([NEXT.fetch_add(1, Ordering::Relaxed); ID_BYTES]) };
    0
}

unsafe extern "C" fn comm_init_rank(comm: *mut *mut c_void, ranks: c_int, id: UniqueId, rank: c_int) -> c_int {
    let group = lock(&GROUPS).get_or_insert_default().entry(id.0).or_default().clone();
    let mut state = lock(&group.state);
    state.ranks = ranks as usize;
    state.joined += 1;
    group.changed.notify_all();
    // Like NCCL, wait forever if a rank does not join.
    state = group.changed.wait_while(state, |state| state.joined < state.ranks).unwrap();
    drop(state);
    // SAFETY: the caller gives room for a communicator.
    unsafe { *comm = Box::into_raw(Box::new(Member { group, rank })).cast() };
    0
}

unsafe extern "C" fn comm_abort(comm: *mut c_void) -> c_int {
    // SAFETY: made above, and never freed: another call may be in it.
    let Member { group, rank } = unsafe { &*comm.cast::<Member>() };
    lock(&group.state).aborted.push(*rank);
    group.changed.notify_all();
    0
}

unsafe extern "C" fn all_reduce(
    from: *const c_void,
    to: *mut c_void,
    len: usize,
    _: c_int,
    _: c_int,
    comm: *mut c_void,
    _: *mut c_void,
) -> c_int {
    // SAFETY: made above; the emulated GPU's memory is the host's, and holds `len` values.
    let (Member { group, rank }, values, to) = unsafe {
        let (from, to) = (from.cast::<f32>(), to.cast::<f32>());
        (&*comm.cast::<Member>(), std::slice::from_raw_parts(from, len).to_vec(), to)
    };
    let mut state = lock(&group.state);
    state.sum.resize(len, 0.0);
    state.sum.iter_mut().zip(&values).for_each(|(sum, value)| *sum += value);
    state.brought += 1;
    let made = state.made;
    if state.brought == state.ranks {
        (state.last, state.brought) = (std::mem::take(&mut state.sum), 0);
        state.made += 1;
        group.changed.notify_all();
    }
    let waits = |state: &mut State| state.made == made && !state.aborted.contains(rank);
    state = group.changed.wait_while(state, waits).unwrap();
    if state.made > made {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(to, len) }.copy_from_slice(&state.last);
    }
    0
}

unsafe extern "C" fn send(
    from: *const c_void,
    len: usize,
    _: c_int,
    to: c_int,
    comm: *mut c_void,
    _: *mut c_void,
) -> c_int {
    // SAFETY: made above; the emulated GPU's memory is the host's, and holds `len` values.
    let (Member { group, rank }, values) =
        unsafe { (&*comm.cast::<Member>(), std::slice::from_raw_parts(from.cast::<f32>(), len).to_vec()) };
    lock(&group.state).sent.entry((*rank, to)).or_default().push(values);
    group.changed.notify_all();
    0
}

unsafe extern "C" fn recv(
    to: *mut c_void,
    len: usize,
    _: c_int,
    from: c_int,
    comm: *mut c_void,
    _: *mut c_void,
) -> c_int {
    // SAFETY: as above.
    let (Member { group, rank }, to) =
        unsafe { (&*comm.cast::<Member>(), std::slice::from_raw_parts_mut(to.cast::<f32>(), len)) };
    let way = (from, *rank);
    let waits = |state: &mut State| state.sent.get(&way).is_none_or(Vec::is_empty) && !state.aborted.contains(rank);
    let mut state = group.changed.wait_while(lock(&group.state), waits).unwrap();
    if let Some(sent) = state.sent.get_mut(&way).filter(|sent| !sent.is_empty()) {
        to.copy_from_slice(&sent.remove(0));
    }
    0
}

unsafe extern "C" fn get_error_string(_: c_int) -> *const c_char {
    c"an error".as_ptr()
}

const TABLE: Nccl =
    Nccl { get_unique_id, comm_init_rank, comm_abort, all_reduce, send, recv, get_error_string, _library: None };

static STAND_IN: Nccl = TABLE;

/// A group whose sums are accepted and never computed.
pub(crate) fn silent_group(backend: &CudaBackend) -> NcclGroup {
    unsafe extern "C" fn ask(
        _: *const c_void,
        _: *mut c_void,
        _: usize,
        _: c_int,
        _: c_int,
        _: *mut c_void,
        _: *mut c_void,
    ) -> c_int {
        0
    }
    unsafe extern "C" fn abort(_: *mut c_void) -> c_int {
        0
    }
    static SILENT: Nccl = Nccl { all_reduce: ask, comm_abort: abort, ..TABLE };
    NcclGroup::of(&SILENT, Comm(std::ptr::null_mut()), backend.driver())
}

/// Run `body` for `count` ranks, each on its own thread and emulated GPU. `None` without a compiler.
fn over_ranks<T: Send>(count: usize, body: impl Fn(CudaBackend, Ranks) -> T + Sync) -> Option<Vec<T>> {
    let kernels = Kernels::for_tests()?;
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap().port();
    let run = |rank| {
        let driver = Arc::new(Emulated::new(EmulatedGpu::new(&kernels)));
        let ranks = Ranks::new(rank, count).unwrap().at("127.0.0.1", port);
        body(CudaBackend::on(driver, &CudaOptions::new().precision(Precision::Exact)), ranks)
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..count).map(|rank| scope.spawn(move || run(rank))).collect();
        Some(std::iter::once(run(0)).chain(others.into_iter().map(|other| other.join().unwrap())).collect())
    })
}

/// Join the ranks of `transport` by the stand-in.
fn join(backend: &CudaBackend, transport: &Transport) -> Result<NcclGroup> {
    NcclGroup::join_by(&STAND_IN, backend.driver(), "a GPU", transport)
}

/// Run `body` for two ranks that are connected.
fn two_ranks<T: Send>(body: impl Fn(CudaBackend, Transport) -> T + Sync) -> Option<[T; 2]> {
    let connect = |ranks: Ranks| ranks.rendezvous(&[("model", "none".into())]).unwrap();
    over_ranks(2, |backend, ranks| body(backend, connect(ranks)))?.try_into().ok()
}

const LIMITS: Limits = Limits {
    max_model_len: 64,
    max_num_batched_tokens: 32,
    max_num_seqs: 2,
    max_num_logits: 32,
    block_size: 16,
    num_blocks: 4,
    vocab_size: 288,
    num_token_ids: 288,
};

/// A random model of three layers.
fn model() -> RandomModel {
    RandomModel::new(Geometry { layers: 3, ..GEOMETRIES[0] }).unwrap()
}

fn load(mut backend: CudaBackend, spec: ModelSpec, model: &RandomModel) -> ModelRunner<CudaBackend> {
    let loaded = Model::load(&mut backend, spec, &LIMITS, model, &mut |_, _| Ok(())).unwrap();
    ModelRunner::new(backend, loaded, RopeStages::new(&model.config), LIMITS)
}

/// The bits of the logits of a prompt and two tokens after it, or where they were damaged.
fn answer(runner: &mut dyn Runner) -> Result<Vec<u32>> {
    let blocks: Vec<BlockId> = (0..4).map(BlockId).collect();
    let mut bits = Vec::new();
    for (input_ids, num_computed_tokens) in [(&[3, 1, 4, 1, 5][..], 0), (&[9], 5), (&[2], 6)] {
        let mut batch = Batch::new(LIMITS.block_size);
        let logits = WantLogits::Last;
        batch.push(SequenceStep {
            input_ids,
            num_computed_tokens,
            block_table: &blocks,
            logits,
            rope_stage: 0,
            adapter: None,
        })?;
        let mut output = StepOutput::default();
        runner.execute(&batch, &mut output, &Interrupt::default())?;
        if let Some(damage) = output.damage.first() {
            return Err(Error::NonFinite { place: damage.place.clone(), sequence: damage.seq as u64 });
        }
        bits.extend(output.logits.iter().map(|logit| logit.to_bits()));
    }
    Ok(bits)
}

/// The answer of rank 0 of three ranks that share the layers of `model`.
fn by_layers(model: &RandomModel) -> Option<Result<Vec<u32>>> {
    let answers = over_ranks(3, |backend, ranks| {
        let ranks = ranks.pipeline_parallel();
        let spec = ranks.part(&model.config)?;
        let transport = Arc::new(ranks.rendezvous(&[("model", "random".into())])?);
        let group = join(&backend, &transport)?;
        let runner = load(backend, spec, model).with_neighbours(Arc::new(group));
        match transport.rank() {
            0 => answer(&mut DistributedRunner::new(runner, transport)),
            _ => worker_loop(runner, &transport).map(|()| Vec::new()),
        }
    })?;
    answers.into_iter().next()
}

#[test]
fn stages_send_activations_from_gpu_to_gpu() {
    let model = model();
    let Some(staged) = by_layers(&model) else { return };
    let kernels = Kernels::for_tests().unwrap();
    let whole = Emulated::new(EmulatedGpu::new(&kernels));
    let whole = CudaBackend::on(Arc::new(whole), &CudaOptions::new().precision(Precision::Exact));
    assert_eq!(staged.unwrap(), answer(&mut load(whole, ModelSpec::new(&model.config), &model)).unwrap());
}

#[test]
fn stages_find_where_a_value_first_was_not_finite() {
    for (tensor, row, place) in [
        ("model.embed_tokens.weight", 3, "the embedding"),
        ("model.layers.0.self_attn.k_proj.bias", 3, "layer 0"),
        ("model.layers.1.mlp.down_proj.weight", 5, "layer 1"),
        ("model.layers.2.input_layernorm.weight", 5, "layer 2"),
        ("model.norm.weight", 0, "the output head"),
    ] {
        let mut model = model();
        model.damage(tensor, row);
        match by_layers(&model) {
            None => return,
            Some(Err(Error::NonFinite { place: found, .. })) => assert_eq!(found, place, "{tensor}"),
            Some(other) => panic!("{other:?} of {tensor}"),
        }
    }
}

#[test]
fn ranks_sum_on_their_gpus_and_on_the_host() {
    let sums = two_ranks(|mut backend, transport| {
        let group = join(&backend, &transport).unwrap();
        let own = 10.0 * transport.rank() as f32;
        let mut x = backend.alloc(3).unwrap();
        backend.write(&mut x, &[own, own + 1.0, own + 2.0]).unwrap();
        backend.all_reduce(AllReduce { x: &mut x, len: 3, group: &group }).unwrap();
        let mut on_gpu = [0.0; 3];
        backend.read(&x, &mut on_gpu).unwrap();
        let mut on_host = [own; 2];
        group.all_reduce(&mut on_host).unwrap();
        // No rank leaves before the other has its sums.
        transport.all_reduce_min(0).unwrap();
        (on_gpu, on_host)
    });
    for (on_gpu, on_host) in sums.into_iter().flatten() {
        assert_eq!((on_gpu, on_host), ([10.0, 12.0, 14.0], [10.0, 10.0]));
    }
}

#[test]
fn a_rank_that_does_not_join_leaves_no_rank_waiting() {
    let Some([joining, _]) = two_ranks(|backend, transport| match transport.rank() {
        0 => join(&backend, &transport).map(drop),
        _ => {
            // Like a rank that runs out of memory here.
            transport.all_reduce_min(0)?;
            transport.broadcast(&mut Vec::new())
        }
    }) else {
        return;
    };
    assert!(matches!(joining, Err(Error::RankFailed { rank: 1, .. })), "{joining:?}");
}

#[test]
fn a_rank_that_is_lost_ends_the_sums_of_the_others() {
    let Some([summing, _]) = two_ranks(|backend, transport| {
        let group = join(&backend, &transport)?;
        // Both have joined.
        transport.all_reduce_min(0)?;
        match transport.rank() {
            // The first sum waits for the other rank until it is lost; its values are undefined.
            0 => group.all_reduce(&mut [1.0]).and_then(|()| group.all_reduce(&mut [1.0])),
            _ => Ok(()),
        }
    }) else {
        return;
    };
    let error = summing.unwrap_err().to_string();
    assert!(error.contains(LOST), "{error}");
}

#[test]
fn a_machine_without_nccl_says_so() {
    match Nccl::get() {
        Ok(nccl) => assert!(nccl.unique_id().is_ok()),
        Err(error) => assert!(matches!(error, Error::Unsupported { .. }), "{error}"),
    }
}
