// The C API of Regraft: load, run and refit engines. Written by cbindgen from crates/capi/src: change that, not this.
//
// Ownership: models and outputs belong to the caller, who frees them once with regraft_model_free and regraft_outputs_free. All other
// pointers that are given stay the caller's, are read during the call, and are not kept. Texts are UTF-8 and end with a zero.
//
// Errors: every function that can fail returns a RegraftStatus, and regraft_last_error has the message of this thread. A call that
// fails changes nothing; where it would have written a model or outputs, it writes NULL. Panics do not cross this interface.
//
// Threads: all functions may be called from any thread. A model may be used from several at once; only the call that frees it must
// not overlap with others.

#ifndef REGRAFT_H
#define REGRAFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// How a call ended. When it is not REGRAFT_STATUS_OK, nothing was changed, and regraft_last_error says what happened.
typedef enum {
  // The call did what it was asked to do.
  REGRAFT_STATUS_OK = 0,
  // An argument is not valid: a null pointer, text that is not UTF-8, an unknown device or dtype.
  REGRAFT_STATUS_ARGUMENT = 1,
  // An engine file cannot be read or written, is damaged, or was built for another machine.
  REGRAFT_STATUS_ENGINE = 2,
  // Weights or adapters cannot be read or do not fit, or the engine is frozen.
  REGRAFT_STATUS_WEIGHTS = 3,
  // The inputs are not the ones that the program takes, or the model has no weights yet.
  REGRAFT_STATUS_INPUTS = 4,
  // Any other failure of a run, a refit or a device, such as missing memory.
  REGRAFT_STATUS_FAILED = 5,
  // A bug in Regraft. Please report it.
  REGRAFT_STATUS_PANIC = 6,
} RegraftStatus;

// An engine with the weights that serve. All functions on it but regraft_model_free may be called from several threads at once: a
// run sees one set of weights from start to end, and a refit blocks no run.
typedef struct RegraftModel RegraftModel;

// The outputs of a run. They do not change, and may be read from several threads.
typedef struct RegraftOutputs RegraftOutputs;

// A dense tensor, row by row. One that is given to a function stays the caller's: it is read during the call, and nothing of it is
// kept. What regraft_outputs_get writes belongs to the outputs, and is valid until they are freed.
typedef struct {
  // The name of an input, an output or a weight. The names of all inputs may be NULL: then they are in the program's order.
  const char *name;
  // The type of the elements: "f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8" or "bool" (one
  // byte, 0 or 1).
  const char *dtype;
  // The sizes, as many as `rank`; may be NULL for a rank of 0.
  const size_t *shape;
  // The number of sizes.
  size_t rank;
  // The elements; may be NULL when there are none.
  const void *data;
  // The number of bytes at `data`, which is compared with the shape.
  size_t byte_count;
} RegraftTensor;

// What a refit did.
typedef struct {
  // The number of sources that were given and differ from before.
  size_t changed_sources;
  // The number of slots that were rebuilt.
  size_t rebuilt_slots;
  // The bytes of these slots.
  size_t bytes;
  // How long the refit took, in milliseconds; reading of files is not in it.
  double milliseconds;
} RegraftRefit;

// An adapter to serve. The texts stay the caller's, and are read during the call.
typedef struct {
  // Its file or folder.
  const char *path;
  // Its name, which no other adapter may have; NULL for the name of the file or folder.
  const char *name;
  // Its scale; 1 as it was trained.
  double scale;
} RegraftAdapter;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library, such as "0.1.0".
const char *regraft_version(void);

// The message of the last call in this thread that failed: what happened, where, and what to do about it. NULL when no call has
// failed. The text belongs to the library and is valid until the next call in this thread.
const char *regraft_last_error(void);

// Loads an engine file, and writes the model to `model`; on failure, NULL. The caller frees it with regraft_model_free. `device` is
// "cpu", "cuda" or "cuda:N", or NULL for the CPU. `threads` is the number of threads of a run; 0 stands for one per core.
//
// # Safety
// `path` and `device` are NULL or end with a zero; `model` is NULL or can be written to.
RegraftStatus regraft_model_load(const char *path,
                                 const char *device,
                                 size_t threads,
                                 RegraftModel **model);

// Frees a model; does nothing for NULL. Outputs of its runs stay valid.
//
// # Safety
// `model` is NULL, or comes from regraft_model_load and was not freed; no other call uses it, in any thread.
void regraft_model_free(RegraftModel *model);

// The number of inputs that the program takes; 0 for NULL.
//
// # Safety
// `model` is NULL, or comes from regraft_model_load and was not freed.
size_t regraft_model_input_count(const RegraftModel *model);

// The name of input number `index`, valid until the model is freed; NULL when there is none.
//
// # Safety
// As for regraft_model_input_count.
const char *regraft_model_input_name(const RegraftModel *model, size_t index);

// The number of outputs that a run returns; 0 for NULL.
//
// # Safety
// As for regraft_model_input_count.
size_t regraft_model_output_count(const RegraftModel *model);

// The name of output number `index`, valid until the model is freed; NULL when there is none.
//
// # Safety
// As for regraft_model_input_count.
const char *regraft_model_output_name(const RegraftModel *model, size_t index);

// Runs the program once, and writes the outputs to `outputs`; on failure, NULL. The caller frees them with regraft_outputs_free.
// Either all inputs have names, and may be in any order, or none has one, and they are in the program's order.
//
// # Safety
// `model` is as for regraft_model_input_count; `inputs` is NULL or points to `count` tensors whose pointers are valid for what they
// state, and nobody writes to them during the call; `outputs` is NULL or can be written to.
RegraftStatus regraft_model_run(const RegraftModel *model,
                                const RegraftTensor *inputs,
                                size_t count,
                                RegraftOutputs **outputs);

// Gives the model the weights of a file or folder, all or nothing. It also binds a stripped engine. With `partial` the file may hold
// some of them, and the others are kept. What was done is written to `done`, unless that is NULL.
//
// # Safety
// `model` is as for regraft_model_input_count; `weights` is NULL or ends with a zero; `done` is NULL or can be written to.
RegraftStatus regraft_model_refit(const RegraftModel *model,
                                  const char *weights,
                                  bool partial,
                                  RegraftRefit *done);

// As regraft_model_refit, with weights in memory, by name. They are read during the call, and what the model needs later is copied.
//
// # Safety
// `model` is as for regraft_model_input_count; `weights` is NULL or points to `count` tensors whose pointers are valid for what they
// state, and nobody writes to them during the call; `done` is NULL or can be written to.
RegraftStatus regraft_model_refit_tensors(const RegraftModel *model,
                                          const RegraftTensor *weights,
                                          size_t count,
                                          bool partial,
                                          RegraftRefit *done);

// Serves these adapters and no others, applied to the weights without any; a `count` of 0 takes all away. What was done is written to
// `done`, unless that is NULL.
//
// # Safety
// `model` is as for regraft_model_input_count; `adapters` is NULL or points to `count` of them, whose texts are NULL or end with a
// zero; `done` is NULL or can be written to.
RegraftStatus regraft_model_set_adapters(const RegraftModel *model,
                                         const RegraftAdapter *adapters,
                                         size_t count,
                                         RegraftRefit *done);

// Saves the model as a refittable engine file with the weights that serve; adapters become part of them. A file that is there is
// replaced once the new one is whole.
//
// # Safety
// `model` is as for regraft_model_input_count; `path` is NULL or ends with a zero.
RegraftStatus regraft_model_save(const RegraftModel *model,
                                 const char *path);

// The number of outputs; 0 for NULL.
//
// # Safety
// `outputs` is NULL, or comes from regraft_model_run and was not freed.
size_t regraft_outputs_count(const RegraftOutputs *outputs);

// Writes a view of output number `index` to `tensor`. It is valid until the outputs are freed.
//
// # Safety
// `outputs` is as for regraft_outputs_count; `tensor` is NULL or can be written to.
RegraftStatus regraft_outputs_get(const RegraftOutputs *outputs,
                                  size_t index,
                                  RegraftTensor *tensor);

// Frees outputs, with all views of them; does nothing for NULL.
//
// # Safety
// `outputs` is as for regraft_outputs_count, and neither it nor its views are used any more.
void regraft_outputs_free(RegraftOutputs *outputs);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* REGRAFT_H */
