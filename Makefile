# linnet: `make help` lists the targets. Sources are found by wildcard: a room's new file is built
# as soon as it is there. Objects go to build/, dependencies are tracked by the compiler (-MMD).
MAKEFLAGS += -r
ifndef V
QUIET = @echo "  $(1) $@";
endif
BUILD ?= build
ifeq ($(origin CC),default)
CC := gcc
endif
ifeq ($(origin CXX),default)
CXX := g++
endif
ARCH := $(shell uname -m)

CFLAGS ?= -O2 -g
WARN := -Wall -Wextra -Werror
COMMON := $(WARN) -D_GNU_SOURCE -fPIC -fvisibility=hidden -fstack-protector-strong -fopenmp -MMD -MP
# No contraction: a*b+c is two roundings unless the source says fma, so every compiler and
# instruction set computes the same bits.
FLOAT := -ffp-contract=off -fno-math-errno
SAN ?=
ifneq ($(SAN),)
COMMON += -fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer
LDSAN := -fsanitize=$(SAN)
# The C driver links without the C++ half of clang's UBSan.
CXXSAN := -fno-sanitize=vptr
else
COMMON += -D_FORTIFY_SOURCE=2
endif
PKGS := sentencepiece libpcre2-8
PKG_CFLAGS = $(shell pkg-config --cflags $(PKGS))
LIBS = $(shell pkg-config --libs $(PKGS)) -fopenmp -lm -lstdc++
CLI_LIBS = $(shell pkg-config --libs jansson libsodium hiredis) -lcivetweb -lpthread
# What a program needs beside liblinnet.a, for any compiler: the OpenMP library by its name.
PRIVATE_LIBS = $(strip $(patsubst -fopenmp,$(if $(findstring clang,$(shell $(CC) --version)),-lomp,-lgomp),$(LIBS)))
HEADERS := $(wildcard linnet*.h)
VERSION := $(shell sed -n 's/^.define LINNET_VERSION "\([0-9.]*\)"$$/\1/p' linnet.h)
SONAME := liblinnet.so.$(firstword $(subst ., ,$(VERSION)))
SHARED := $(BUILD)/liblinnet.so.$(VERSION)
SHARE := $(addprefix $(BUILD)/share/,linnet.1 linnet.bash _linnet linnet.fish)

ROOMS := weights tokenizer attention kernels_cpu session
KERNELS_x86_64 := kernels_cpu/avx2.c kernels_cpu/avx512.c kernels_cpu/avx512_bf16.c
KERNELS_aarch64 := kernels_cpu/neon.c kernels_cpu/neon_dot.c
KERNELS_ELSEWHERE := $(filter-out $(KERNELS_$(ARCH)),$(KERNELS_x86_64) $(KERNELS_aarch64))
LIB_SRC := $(wildcard *.c $(ROOMS:%=%/*.c) $(ROOMS:%=%/*.cc))
LIB_SRC := $(filter-out run.c $(KERNELS_ELSEWHERE),$(LIB_SRC))
CLI_SRC := run.c $(wildcard cli/*.c server/*.c)
LIB_OBJ := $(LIB_SRC:%=$(BUILD)/%.o)
CLI_OBJ := $(CLI_SRC:%=$(BUILD)/%.o)
TESTS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c)) \
	$(patsubst tests/%.cu,$(BUILD)/tests/%,$(wildcard tests/test_*.cu))
BENCHES := $(patsubst bench/%.c,$(BUILD)/bench/%,$(wildcard bench/*.c))
# The CUDA sources, once for GPUs and once as plain C++ for the emulated GPU of the tests.
NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
# Compute capabilities to build for: those of the GPUs here, else sm_80, whose PTX suits later ones.
CUDA_ARCHS ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | \
	sort -un),80)
CUDA_SRC := $(wildcard kernels_cuda/*.cu)
CUDA_OBJ := $(CUDA_SRC:%=$(BUILD)/cuda/%.o)
EMU_SRC := $(filter-out kernels_cuda/device.cu,$(CUDA_SRC)) $(wildcard tests/emulation/*.cc)
EMU_OBJ := $(EMU_SRC:%=$(BUILD)/emu/%.o)
EMU_TEST_OBJ := $(patsubst %,$(BUILD)/emu/%.o,$(wildcard tests/test_*.cu))
.SECONDARY: $(EMU_OBJ) $(EMU_TEST_OBJ)
FUZZERS := $(patsubst tests/%.c,build/fuzz/%,$(wildcard tests/fuzz_*.c))

.PHONY: all help FORCE demo demo-linear chat deps cuda cuda-all emu test-cuda bench-cuda tradeoff linearized bench test test-c test-clients asan ubsan soak neon \
	fuzz format format-check lib share install uninstall clean
ifneq ($(NVCC),)
all: linnet lib share liblinnet_cuda.so
else
all: linnet lib share
	@echo "built for the CPU alone: there is no nvcc"
endif

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: deps ## install what is needed, build, fetch a small real model and answer a question
	@$(MAKE) --no-print-directory all
	@scripts/demo.sh

chat: deps ## talk to the demo's model
	@$(MAKE) --no-print-directory all
	@scripts/demo.sh --chat

demo-linear: deps ## the demo's model and a linearization of it side by side
	@$(MAKE) --no-print-directory linnet
	@scripts/demo_linear.sh

deps: ## install the Debian packages and the Python environment of the exporter
	@scripts/deps.sh

linnet: $(CLI_OBJ) $(BUILD)/liblinnet.a
	$(call QUIET,LD)$(CC) $(LDSAN) -o $@ $^ $(LIBS) $(CLI_LIBS)

$(BUILD)/linnet: $(CLI_OBJ) $(BUILD)/liblinnet.a
	$(call QUIET,LD)$(CC) $(LDSAN) -o $@ $^ $(LIBS) $(CLI_LIBS)

$(BUILD)/liblinnet.a: $(LIB_OBJ)
	@rm -f $@
	$(call QUIET,AR)ar rcs $@ $^

# Never unmapped (nodelete): OpenMP's threads may still be on their way out when a model has been
# closed, and not every library that comes along is made for going.
lib: $(BUILD)/liblinnet.a $(BUILD)/liblinnet.so ## build/liblinnet.a and build/liblinnet.so
$(SHARED): $(LIB_OBJ) packaging/liblinnet.map
	$(call QUIET,LD)$(CC) $(LDSAN) -shared -Wl,-soname,$(SONAME) -Wl,--version-script=packaging/liblinnet.map \
		-Wl,-z,defs,-z,relro,-z,now,-z,noexecstack,-z,nodelete -o $@ $(LIB_OBJ) $(LIBS)
$(BUILD)/liblinnet.so: $(SHARED)
	@ln -sf $(<F) $(@D)/$(SONAME)
	@ln -sf $(SONAME) $@

share: $(SHARE) ## the manual page and the completions of shells
$(BUILD)/share/linnet.1: WORDS := manual
$(BUILD)/share/linnet.bash: WORDS := completion bash
$(BUILD)/share/_linnet: WORDS := completion zsh
$(BUILD)/share/linnet.fish: WORDS := completion fish
$(SHARE): linnet
	@mkdir -p $(@D)
	@./linnet $(WORDS) >$@.new
	@mv $@.new $@

# Loops that ask to be unrolled need not be where clang cannot: -Wno-pass-failed.
$(BUILD)/kernels_cpu/avx2.c.o: ISA := -Wno-pass-failed -mavx2 -mfma -mf16c
AVX512 := -Wno-pass-failed -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni \
	-mprefer-vector-width=512
$(BUILD)/kernels_cpu/avx512.c.o: ISA := $(AVX512)
$(BUILD)/kernels_cpu/avx512_bf16.c.o: ISA := $(AVX512) -mavx512bf16
$(BUILD)/kernels_cpu/neon.c.o: ISA := -Wno-pass-failed
$(BUILD)/kernels_cpu/neon_dot.c.o: ISA := -Wno-pass-failed -march=armv8.2-a+dotprod
$(BUILD)/%.c.o: %.c
	@mkdir -p $(@D)
	$(call QUIET,CC)$(CC) -std=c11 $(CFLAGS) $(COMMON) $(FLOAT) $(ISA) $(PKG_CFLAGS) -c -o $@ $<

$(BUILD)/%.cc.o: %.cc
	@mkdir -p $(@D)
	$(call QUIET,CXX)$(CXX) -std=c++17 $(CFLAGS) $(COMMON) $(CXXSAN) $(FLOAT) $(PKG_CFLAGS) -c -o $@ $<

$(BUILD)/emu/%.o: %
	@mkdir -p $(@D)
	$(call QUIET,EMU)$(CXX) -x c++ -std=c++17 $(CFLAGS) $(COMMON) $(CXXSAN) $(FLOAT) -c -o $@ $<

# Machine code for each of CUDA_ARCHS, and PTX of the last for GPUs to come. As on the CPU: a*b+c is
# two roundings unless the source says fma.
CUDA_CODE = $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$a,code=sm_$a) \
	-gencode arch=compute_$(lastword $(CUDA_ARCHS)),code=compute_$(lastword $(CUDA_ARCHS))
$(BUILD)/cuda/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(call QUIET,NVCC)$(NVCC) -std=c++17 -O2 -g -lineinfo -fmad=false -Werror all-warnings $(CUDA_CODE) \
		-Xcompiler -Wall,-Wextra,-Werror,-fPIC,-fvisibility=hidden,-ffp-contract=off -MMD -MP -c -o $@ $<

# A row of `linnet bench` says which sources it measured.
$(BUILD)/cli/machine.c.o: COMMON += -include $(BUILD)/commit.h
$(BUILD)/cli/machine.c.o: $(BUILD)/commit.h
$(BUILD)/commit.h: FORCE
	@mkdir -p $(@D)
	@{ echo "#define BUILD_COMMIT \"$$(git describe --always --dirty 2>/dev/null || echo unknown)\""; \
		echo "#define BUILD_NUMBER $$(git rev-list --count HEAD 2>/dev/null || echo 0)"; } >$@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@
FORCE:

# Has the web page inside: a list of its files, which changes when one comes or goes.
PAGE := $(notdir $(sort $(wildcard server/page/*)))
$(BUILD)/server/page.c.o: COMMON += -include $(BUILD)/page_files.h
$(BUILD)/server/page.c.o: $(BUILD)/page_files.h $(PAGE:%=server/page/%)
$(BUILD)/page_files.h: FORCE
	@mkdir -p $(@D)
	@{ printf '#define PAGE_FILES(X)'; i=0; for f in $(PAGE); do \
		printf ' X(%d, "%s")' $$i $$f; i=$$((i + 1)); done; echo; } >$@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

# Has texts inside.
$(BUILD)/cli/texts.c.o: data/haystack.txt data/factbook.jsonl

# This one decides which of the library's allocations fail.
WRAPPED := malloc calloc realloc aligned_alloc strdup mmap pthread_create
$(BUILD)/tests/test_model_memory: LIBS += $(WRAPPED:%=-Wl,--wrap=%)
$(BUILD)/tests/%: tests/%.c $(BUILD)/liblinnet.a
	@mkdir -p $(@D)
	$(call QUIET,LD)$(CC) -std=c11 $(CFLAGS) $(COMMON) $(FLOAT) $(LDSAN) -o $@ $< $(BUILD)/liblinnet.a $(LIBS) -lcmocka

# Look at the command from the inside.
INSIDE := $(addprefix $(BUILD)/tests/,test_recall test_conversations test_scheduler test_scheduler_ends \
	test_scheduler_queue test_json_mask)
$(INSIDE): $(BUILD)/tests/%: tests/%.c $(filter-out $(BUILD)/run.c.o,$(CLI_OBJ)) $(BUILD)/liblinnet.a
	@mkdir -p $(@D)
	$(call QUIET,LD)$(CC) -std=c11 $(CFLAGS) $(COMMON) $(FLOAT) $(LDSAN) -o $@ $(filter-out %.h,$^) $(LIBS) $(CLI_LIBS) -lcmocka

$(BUILD)/tests/%: $(BUILD)/emu/tests/%.cu.o $(EMU_OBJ) $(BUILD)/liblinnet.a
	@mkdir -p $(@D)
	$(call QUIET,LD)$(CXX) $(LDSAN) -o $@ $^ $(LIBS) -lcmocka

# The library has its functions where a program has not linked them in: the emulated backend first.
EMU_TESTS := $(BUILD)/tests/test_cuda $(BUILD)/tests/test_cuda_errors
$(EMU_TESTS): $(BUILD)/%: %.c $(EMU_OBJ) $(BUILD)/liblinnet.a
	@mkdir -p $(@D)
	$(call QUIET,LD)$(CC) -std=c11 $(CFLAGS) $(COMMON) $(FLOAT) $(LDSAN) -DEMULATED -o $@ $(filter-out %.h,$^) $(LIBS) -lcmocka

emu: $(BUILD)/linnet-emu ## build/linnet-emu: linnet whose cuda backend is emulated on the CPU, for tests
$(BUILD)/linnet-emu: $(CLI_OBJ) $(EMU_OBJ) $(BUILD)/liblinnet.a
	$(call QUIET,LD)$(CC) $(LDSAN) -o $@ $^ $(LIBS) $(CLI_LIBS)

# The emulated backend as the library that is opened at run time, to test how that one is found.
$(BUILD)/emu/liblinnet_cuda.so: $(EMU_OBJ) $(BUILD)/weights/dtype.c.o
	$(call QUIET,LD)$(CXX) $(LDSAN) -shared -Wl,-z,defs -o $@ $^ -lpthread

# Opened at run time; has CUDA's runtime inside, and needs nothing but the driver.
liblinnet_cuda.so: $(CUDA_OBJ) $(BUILD)/weights/dtype.c.o
	$(call QUIET,LD)$(NVCC) -shared -cudart static -Xlinker --exclude-libs,ALL $(CUDA_CODE) -o $@ $^

# On a machine with a GPU: the same parity test against it.
$(BUILD)/gpu/test_cuda: tests/test_cuda.c $(BUILD)/liblinnet.a liblinnet_cuda.so
	@mkdir -p $(@D)
	@ln -sf ../../liblinnet_cuda.so $(@D)/liblinnet_cuda.so
	$(call QUIET,LD)$(CC) -std=c11 $(CFLAGS) $(COMMON) $(FLOAT) -o $@ $< $(BUILD)/liblinnet.a $(LIBS) -lcmocka

test-cuda: $(BUILD)/cuda/test_simt $(BUILD)/gpu/test_cuda ## on a machine with a GPU: parity with the CPU, memcheck and racecheck
	@scripts/test_cuda.sh $^

bench-cuda: linnet liblinnet_cuda.so $(BUILD)/bench/cuda_limits $(BUILD)/bench/random_model ## on a machine with a GPU: its figures, into bench/results
	@python3 bench/cuda.py

cuda: liblinnet_cuda.so ## the CUDA backend alone, for CUDA_ARCHS, by default the GPUs here or sm_80 and PTX
cuda-all: ## the CUDA backend for every GPU from sm_80 on that this nvcc knows
	@$(MAKE) --no-print-directory cuda BUILD=build/all CUDA_ARCHS="$(filter $(shell $(NVCC) --list-gpu-arch | \
		sed -n 's/compute_//p'),80 86 89 90 100)"

$(BUILD)/bench/cuda_limits: $(BUILD)/cuda/bench/cuda_limits.cu.o $(BUILD)/cuda/kernels_cuda/device.cu.o $(BUILD)/weights/dtype.c.o
	@mkdir -p $(@D)
	$(call QUIET,LD)$(NVCC) -cudart static $(CUDA_CODE) -o $@ $(filter-out %.h,$^)

# The same test for a real GPU.
$(BUILD)/cuda/test_simt: $(BUILD)/cuda/tests/test_simt.cu.o $(BUILD)/cuda/kernels_cuda/device.cu.o $(BUILD)/liblinnet.a
	$(call QUIET,LD)$(NVCC) -ccbin $(CXX) $(CUDA_CODE) -o $@ $(filter-out %.h,$^) $(patsubst -fopenmp,-Xcompiler -fopenmp,$(LIBS)) -lcmocka

$(BUILD)/bench/%: bench/%.c $(BUILD)/liblinnet.a
	@mkdir -p $(@D)
	$(call QUIET,LD)$(CC) -std=c11 $(CFLAGS) $(COMMON) $(FLOAT) $(LDSAN) -o $@ $< $(BUILD)/liblinnet.a $(LIBS)

# Goes through the server's stores.
$(BUILD)/bench/states: bench/states.c $(BUILD)/server/store_redis.c.o $(BUILD)/liblinnet.a
	@mkdir -p $(@D)
	$(call QUIET,LD)$(CC) -std=c11 $(CFLAGS) $(COMMON) $(FLOAT) $(LDSAN) -o $@ $(filter-out %.h,$^) $(LIBS) $(CLI_LIBS)

tradeoff: linnet ## recall against state and speed of the committed models: table, charts, report
	@scripts/tradeoff.sh

linearized: deps linnet ## what linearizing SmolLM2-135M costs: the deltas of models/, controls, the original (80 minutes)
	@scripts/linearized.sh

bench: $(BENCHES) ## the programs of bench/ (its README tells what they measure)

test: deps ## everything that needs neither a GPU nor a model (installs packages)
	@$(MAKE) --no-print-directory linnet
	@scripts/test.sh

test-c: $(TESTS) $(BENCHES) $(BUILD)/linnet ## the C tests and the command line, with the tools already there
	@LINNET=$(BUILD)/linnet scripts/test.sh --c $(TESTS)

test-clients: deps ## the server with a browser and other people's clients (installs them, from PyPI too)
	@$(MAKE) --no-print-directory linnet
	@scripts/deps.sh --clients
	@scripts/test.sh --clients

asan: ## the C tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) --no-print-directory BUILD=build/asan SAN=address,undefined CFLAGS="-O1 -g" test-c

ubsan: ## the C tests under UndefinedBehaviorSanitizer alone (clang)
	@$(MAKE) --no-print-directory BUILD=build/ubsan CC=clang CXX=clang++ SAN=undefined CFLAGS="-O1 -g" test-c

neon: ## the C tests, cross-built, on an emulated 64-bit ARM machine (installs what that needs)
	@scripts/neon.sh

soak: linnet ## 1,000 conversations with the server one by one and 200 at once, for each of five mixers
	@.venv/bin/python -m tests.soak_serve

fuzz: $(FUZZERS) ## a minute of each fuzz target (clang's libFuzzer)
	@for f in $(FUZZERS); do echo "$$f"; mkdir -p build/fuzz/corpus/$$(basename $$f); \
		$$f -max_total_time=$${FUZZ_SECONDS:-60} -rss_limit_mb=4096 -print_final_stats=0 \
		build/fuzz/corpus/$$(basename $$f) || exit 1; done

build/fuzz/%: tests/%.c
	@mkdir -p $(@D)
	@$(MAKE) --no-print-directory BUILD=build/fuzzlib CC=clang CXX=clang++ \
		SAN=address,undefined,fuzzer-no-link CFLAGS="-O1 -g" build/fuzzlib/liblinnet.a
	clang -std=c11 -O1 -g $(COMMON) $(FLOAT) -fsanitize=address,undefined,fuzzer -o $@ $< \
		build/fuzzlib/liblinnet.a $(LIBS)

FORMAT := $(shell git ls-files '*.c' '*.h' '*.cc' '*.cu' 2>/dev/null)
format: ## clang-format every source
	clang-format -i $(FORMAT)

format-check:
	clang-format --dry-run -Werror $(FORMAT)

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INSTALL = @PREFIX="$(PREFIX)" LIBDIR="$(LIBDIR)" DESTDIR="$(DESTDIR)" BUILD="$(BUILD)" VERSION="$(VERSION)" \
	SONAME="$(SONAME)" HEADERS="$(HEADERS)" PRIVATE_LIBS="$(PRIVATE_LIBS)" scripts/install.sh
install: linnet lib share ## program, library, headers, manual: into PREFIX (/usr/local), LIBDIR (PREFIX/lib), DESTDIR
	$(INSTALL)
uninstall: ## takes away what install put there
	$(INSTALL) --uninstall

clean: ## remove what was built
	rm -rf build linnet liblinnet_cuda.so python/build python/*.egg-info

-include $(LIB_OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(EMU_OBJ:.o=.d) $(EMU_TEST_OBJ:.o=.d) \
	$(CUDA_OBJ:.o=.d) $(wildcard $(BUILD)/tests/*.d $(BUILD)/bench/*.d $(BUILD)/cuda/tests/*.d $(BUILD)/cuda/bench/*.d)
