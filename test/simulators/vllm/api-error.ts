import { STATUS_CODES } from 'node:http';

/** An answer that is an error, with the parts of vLLM's envelope. */
export interface ApiError {
  status: number;
  message: string;
  type: string;
  param: string | null;
}

/** vLLM's envelope (vllm/entrypoints/openai/engine/protocol.py ErrorResponse): `code` is the status as a number. */
export function errorBody({ status, message, type, param }: ApiError): string {
  return JSON.stringify({ error: { message, type, param, code: status } });
}

/** What FastAPI's HTTPException becomes in vLLM: the status phrase is message and type. */
export function httpError(status: number, message?: string): ApiError {
  const phrase = STATUS_CODES[status] ?? 'Error';
  return { status, message: message ?? phrase, type: phrase, param: null };
}

/** A value that vLLM itself refuses (create_error_response of a ValueError). */
export function badRequest(message: string, param: string | null = null): ApiError {
  return { status: 400, message, type: 'BadRequestError', param };
}

/**
 * check_model of vllm/entrypoints/openai/models/serving.py names the field. Pooling endpoints raise
 * VLLMNotFoundError instead, which does not (vLLM 0.32.0, seen).
 */
export function unknownModel(model: string, param: 'model' | null): ApiError {
  const message = `The model \`${model}\` does not exist.`;
  return { status: 404, message, type: 'NotFoundError', param };
}

/** EngineDeadError of vllm/v1/engine/exceptions.py, after a CUDA out of memory for example. */
export const ENGINE_DEAD: ApiError = {
  status: 500,
  message: 'EngineCore encountered an issue. See stack trace (above) for the root cause.',
  type: 'InternalServerError',
  param: null,
};

/** Admission control of `--max-num-queued-reqs` (AsyncLLM.check_admission, QueueOverflowError). */
export function queueFull(limit: number): ApiError {
  return httpError(503, `The request queue is full: max_num_queued_reqs is ${limit}.`);
}
