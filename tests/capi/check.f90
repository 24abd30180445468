! The C interface as a Fortran program uses it: column-major arrays by strides, no copy.
program check
    use, intrinsic :: iso_c_binding
    implicit none

    type, bind(c) :: matrix
        type(c_ptr) :: data
        integer(c_size_t) :: rows, cols
        integer(c_intptr_t) :: row_stride, col_stride
        integer(c_int32_t) :: dtype
    end type

    interface
        integer(c_int) function tensorslim_svd_new(rule, value, out) bind(c)
            import :: c_int, c_int32_t, c_double, c_ptr
            integer(c_int32_t), value :: rule
            real(c_double), value :: value
            type(c_ptr), intent(out) :: out
        end function
        subroutine tensorslim_svd_free(svd) bind(c)
            import :: c_ptr
            type(c_ptr), value :: svd
        end subroutine
        integer(c_int) function tensorslim_factor(svd, a, precision, progress, context, out) bind(c)
            import :: c_int, c_int32_t, c_ptr, c_funptr, matrix
            type(c_ptr), value :: svd, context
            type(matrix), intent(in) :: a
            integer(c_int32_t), value :: precision
            type(c_funptr), value :: progress
            type(c_ptr), intent(out) :: out
        end function
        integer(c_int) function tensorslim_factors_split(factors, split, up, down) bind(c)
            import :: c_int, c_int32_t, c_ptr, matrix
            type(c_ptr), value :: factors
            integer(c_int32_t), value :: split
            type(matrix), intent(in) :: up, down
        end function
        subroutine tensorslim_factors_free(factors) bind(c)
            import :: c_ptr
            type(c_ptr), value :: factors
        end subroutine
    end interface

    integer, parameter :: m = 40, n = 24, k = 2
    integer(c_int32_t), parameter :: fixed = 0, f64 = 3, balanced = 2
    real(c_double), target :: w(m, n), up(m, k), down(k, n)
    type(c_ptr) :: svd, factors
    integer :: i, j

    do j = 1, n
        do i = 1, m
            w(i, j) = sin(0.3d0 * i + 0.7d0 * j)
        end do
    end do
    if (tensorslim_svd_new(fixed, real(k, c_double), svd) /= 0) error stop 1
    if (tensorslim_factor(svd, of(w, m, n), f64, c_null_funptr, c_null_ptr, factors) /= 0) error stop 2
    if (tensorslim_factors_split(factors, balanced, of(up, m, k), of(down, k, n)) /= 0) error stop 3
    call tensorslim_factors_free(factors)
    call tensorslim_svd_free(svd)
    ! sin(a + b) has rank 2.
    if (maxval(abs(matmul(up, down) - w)) > 1d-12) error stop 4
    print '(a)', 'all well'

contains

    function of(a, rows, cols) result(described)
        integer, intent(in) :: rows, cols
        real(c_double), target, intent(inout) :: a(rows, cols)
        type(matrix) :: described
        described%data = c_loc(a)
        described%rows = rows
        described%cols = cols
        described%row_stride = 1
        described%col_stride = rows
        described%dtype = f64
    end function
end program
