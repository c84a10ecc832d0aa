//! Silero's voice activity model, computed here: 0.2 ms a window, no native library.

use std::{fs, path::PathBuf, sync::Arc};

use rspp_proto::SampleRate;
use rspp_provider_api::{Cost, Description, Fault, VoiceActivity, VoiceDetector};

use super::weights::{Weights, WeightsError};
use crate::{describe::describe, lazy::Lazy, onnx};

/// Samples the model takes at a time: 32 ms.
const WINDOW: usize = 512;
/// Samples of the window before that it sees again.
const CONTEXT: usize = 64;
/// Samples of one frame of its spectrum.
const FRAME: usize = 256;
/// Samples from one frame to the next.
const HOP: usize = 128;
/// Frames in a window.
const FRAMES: usize = 4;
/// Frequency bins of a frame.
const BINS: usize = FRAME / 2 + 1;
/// Width of the recurrent layer.
const HIDDEN: usize = 128;
/// Inputs, outputs and stride of the four convolutions, all three frames wide.
const LAYERS: [(usize, usize, usize); 4] =
    [(BINS, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1)];

/// Silero's voice activity model.
#[derive(Debug)]
pub struct Silero {
    description: Description,
    network: Lazy<Arc<Network>>,
}

impl Silero {
    /// Reads its weights from the ONNX file at `path` when first needed.
    pub fn new(path: PathBuf) -> Self {
        let load = move || {
            let doing = format!("loading {}", path.display());
            let file = fs::read(&path).map_err(|error| onnx::fault(&doing, error))?;
            let network = Network::parse(&file).map_err(|error| onnx::fault(&doing, error))?;
            Ok(Arc::new(network))
        };
        Self {
            description: describe("silero", "silero-vad 6.2"),
            network: Lazy::new(load),
        }
    }

    pub(crate) fn warm_up(&self) -> Result<(), Fault> {
        self.network.get().map(drop)
    }
}

impl VoiceActivity for Silero {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn detector(&self) -> Result<Box<dyn VoiceDetector>, Fault> {
        let network = Arc::clone(&*self.network.get()?);
        Ok(Box::new(Detector {
            network,
            state: State::default(),
        }))
    }
}

struct Detector {
    network: Arc<Network>,
    state: State,
}

impl VoiceDetector for Detector {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }

    fn window(&self) -> usize {
        WINDOW
    }

    fn cost(&self) -> Cost {
        Cost::Offload
    }

    fn probability(&mut self, window: &[i16]) -> f32 {
        self.network.step(&mut self.state, window)
    }

    fn reset(&mut self) {
        self.state = State::default();
    }
}

/// What a detector remembers.
#[derive(Clone, Debug)]
struct State {
    context: [f32; CONTEXT],
    hidden: [f32; HIDDEN],
    cell: [f32; HIDDEN],
}

impl Default for State {
    fn default() -> Self {
        Self {
            context: [0.0; CONTEXT],
            hidden: [0.0; HIDDEN],
            cell: [0.0; HIDDEN],
        }
    }
}

#[derive(Debug)]
struct Network {
    /// Real and imaginary parts of each bin's window, one row of `FRAME` each.
    basis: Vec<f32>,
    convolutions: [Convolution; 4],
    recurrent: Recurrent,
    output: Vec<f32>,
    output_bias: f32,
}

impl Network {
    fn parse(file: &[u8]) -> Result<Self, WeightsError> {
        let mut weights = Weights::parse(file)?;
        let mut convolution = |index: usize| {
            let (inputs, outputs, stride) = LAYERS[index];
            let name = format!("model.encoder.{index}.reparam_conv");
            let kernel = weights.take(&format!("{name}.weight"), outputs * inputs * 3)?;
            let bias = weights.take(&format!("{name}.bias"), outputs)?;
            Ok(Convolution::new(&kernel, bias, inputs, stride))
        };
        let convolutions = [
            convolution(0)?,
            convolution(1)?,
            convolution(2)?,
            convolution(3)?,
        ];
        let mut gates = |name: &str, len| weights.take(&format!("model.decoder.rnn.{name}"), len);
        let input_bias = gates("bias_ih", 4 * HIDDEN)?;
        let hidden_bias = gates("bias_hh", 4 * HIDDEN)?;
        let recurrent = Recurrent {
            input: gates("weight_ih", 4 * HIDDEN * HIDDEN)?,
            hidden: gates("weight_hh", 4 * HIDDEN * HIDDEN)?,
            bias: input_bias
                .iter()
                .zip(&hidden_bias)
                .map(|(a, b)| a + b)
                .collect(),
        };
        Ok(Self {
            basis: weights.take("model.stft.forward_basis_buffer", 2 * BINS * FRAME)?,
            convolutions,
            recurrent,
            output: weights.take("model.decoder.decoder.2.weight", HIDDEN)?,
            output_bias: weights.take("model.decoder.decoder.2.bias", 1)?[0],
        })
    }

    fn step(&self, state: &mut State, window: &[i16]) -> f32 {
        let mut samples = [0.0; CONTEXT + WINDOW + CONTEXT];
        samples[..CONTEXT].copy_from_slice(&state.context);
        for (sample, pcm) in samples[CONTEXT..].iter_mut().zip(window) {
            *sample = f32::from(*pcm) / 32768.0;
        }
        state
            .context
            .copy_from_slice(&samples[WINDOW..WINDOW + CONTEXT]);
        // The end is padded with its mirror image; the last sample is the mirror.
        let end = CONTEXT + WINDOW;
        for i in 0..CONTEXT {
            samples[end + i] = samples[end - 2 - i];
        }

        let mut layer = self.spectrum(&samples);
        let mut frames = FRAMES;
        for convolution in &self.convolutions {
            layer = convolution.run(&layer, frames);
            frames = frames.div_ceil(convolution.stride);
        }
        self.recurrent.run(&layer, state);
        let activity = state.hidden.iter().zip(&self.output);
        let sum: f32 = activity
            .map(|(hidden, weight)| hidden.max(0.0) * weight)
            .sum();
        sigmoid(sum + self.output_bias)
    }

    /// Magnitudes, frame by frame.
    fn spectrum(&self, samples: &[f32]) -> Vec<f32> {
        let (real, imaginary) = self.basis.split_at(BINS * FRAME);
        let frames = (0..FRAMES).map(|frame| &samples[frame * HOP..frame * HOP + FRAME]);
        frames
            .flat_map(|frame| {
                let bins = real.chunks_exact(FRAME).zip(imaginary.chunks_exact(FRAME));
                bins.map(|(real, imaginary)| dot(real, frame).hypot(dot(imaginary, frame)))
            })
            .collect()
    }
}

/// A convolution over three frames, with zeros beyond both ends, and what is negative cut off.
#[derive(Debug)]
struct Convolution {
    /// By output, then by frame, so that each product runs over a row of inputs.
    kernel: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
    stride: usize,
}

impl Convolution {
    /// `kernel` is by output, then by input, as published.
    fn new(kernel: &[f32], bias: Vec<f32>, inputs: usize, stride: usize) -> Self {
        let mut by_frame = vec![0.0; kernel.len()];
        for (output, published) in kernel.chunks_exact(inputs * 3).enumerate() {
            for input in 0..inputs {
                for frame in 0..3 {
                    by_frame[(output * 3 + frame) * inputs + input] = published[input * 3 + frame];
                }
            }
        }
        Self {
            kernel: by_frame,
            bias,
            inputs,
            stride,
        }
    }

    fn run(&self, layer: &[f32], frames: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(frames.div_ceil(self.stride) * self.bias.len());
        for centre in (0..frames).step_by(self.stride) {
            // The rows of kernel and layer that overlap.
            let first = centre.saturating_sub(1);
            let last = (centre + 1).min(frames - 1);
            let rows = &layer[first * self.inputs..(last + 1) * self.inputs];
            let skipped = (first + 1 - centre) * self.inputs;
            let kernels = self.kernel.chunks_exact(3 * self.inputs);
            out.extend(kernels.zip(&self.bias).map(|(kernel, bias)| {
                let kernel = &kernel[skipped..skipped + rows.len()];
                (dot(kernel, rows) + bias).max(0.0)
            }));
        }
        out
    }
}

/// A long short-term memory cell; its four gates lie one after the other: input, forget, cell, output.
#[derive(Debug)]
struct Recurrent {
    input: Vec<f32>,
    hidden: Vec<f32>,
    bias: Vec<f32>,
}

impl Recurrent {
    fn run(&self, layer: &[f32], state: &mut State) {
        let inputs = self.input.chunks_exact(HIDDEN);
        let hiddens = self.hidden.chunks_exact(HIDDEN);
        let mut gates = [0.0; 4 * HIDDEN];
        let rows = inputs.zip(hiddens).zip(&self.bias);
        for (gate, ((input, hidden), bias)) in gates.iter_mut().zip(rows) {
            *gate = bias + dot(input, layer) + dot(hidden, &state.hidden);
        }
        for i in 0..HIDDEN {
            let [enter, forget, candidate, leave] =
                [0, 1, 2, 3].map(|gate| gates[gate * HIDDEN + i]);
            state.cell[i] = sigmoid(forget) * state.cell[i] + sigmoid(enter) * candidate.tanh();
            state.hidden[i] = sigmoid(leave) * state.cell[i].tanh();
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The sum of products, in sixteen lanes that the compiler turns into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    lanes.iter().sum::<f32>() + rest.sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_convolution_is_zero_beyond_both_ends_and_never_negative() {
        // One input, one output: each frame becomes before + 10 * itself + 100 * after.
        let plain = Convolution::new(&[1.0, 10.0, 100.0], vec![0.0], 1, 1);
        assert_eq!(plain.run(&[1.0, 2.0, 3.0], 3), [210.0, 321.0, 32.0]);
        let strided = Convolution::new(&[1.0, 10.0, 100.0], vec![-33.0], 1, 2);
        assert_eq!(strided.run(&[1.0, 2.0, 3.0], 3), [177.0, 0.0]);
    }

    #[test]
    fn a_dot_product_covers_the_part_beyond_the_last_full_row() {
        let a: Vec<f32> = (0..129).map(|i| i as f32).collect();
        assert!((dot(&a, &vec![1.0; 129]) - 8256.0).abs() < f32::EPSILON);
    }

    #[test]
    fn a_file_that_is_not_the_model_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("silero_vad_16k.onnx");
        fs::write(&path, b"\x3a\x00").unwrap();
        let Err(fault) = Silero::new(path).detector() else {
            panic!("an empty model was taken");
        };
        assert!(fault.message.contains("reparam_conv"), "{fault}");
    }
}
