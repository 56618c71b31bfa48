"""LLVM, as llvmlite has it: imported where something has to be compiled, which takes 40 ms and more."""

from __future__ import annotations

from collections.abc import Callable

import llvmlite.binding as llvm

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()


def host() -> tuple[str, str]:
    """The processor's name and its features, as LLVM calls them."""
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


class Compiler:
    """Makes machine code for a processor, and links what `disttensor.kernels.linking` cannot."""

    def __init__(self, cpu: str, features: str):
        def new_target() -> llvm.TargetMachine:
            target = llvm.Target.from_default_triple()
            return target.create_target_machine(cpu=cpu, features=features, opt=3, jit=True)

        # The engine owns its target machine, so compiling needs another.
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), new_target())
        self._target = new_target()

    def compile(self, text: str) -> bytes:
        """The object file of a module."""
        # Without a layout LLVM would align an i64 to 4 bytes.
        module = llvm.parse_assembly(f'target datalayout = "{self._target.target_data}"\n{text}')
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = True
        options.slp_vectorization = False
        builder = llvm.create_pass_builder(self._target, options)
        builder.getModulePassManager().run(module, builder)
        return self._target.emit_object(module)

    def link(self, code: bytes) -> Callable[[str], int]:
        """Load an object file; returns what tells the address of a function by its name."""
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        return self._engine.get_function_address
